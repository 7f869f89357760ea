"""LoRA on linear layers: plain, rank-stabilised, with a bias, on Conv1D, on quantised bases, and DoRA."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn

from laplace_lora.adapters.packed import require_scales
from laplace_lora.adapters.site import LinearUse, Site, Use
from laplace_lora.errors import UnsupportedAdapterError


def linear_sites(name: str, module: LoraLayer, adapter: str) -> Iterator[Site]:
    """Find the matrices of a LoRA pair on a linear layer.

    Args:
        name: Qualified name of the adapted module.
        module: PEFT's layer.
        adapter: Name of the adapter.

    Yields:
        lora_A and lora_B; with DoRA also the magnitude. Nothing if the adapter is not on this module.

    Raises:
        UnsupportedAdapterError: The pair is not made of linear layers.
    """
    dora = isinstance(getattr(module, "lora_variant", {}).get(adapter), DoraLinearVariant)
    factors = []
    for factor in ("lora_A", "lora_B"):
        linears = getattr(module, factor)
        if adapter not in linears:
            return
        linear = linears[adapter]
        if type(linear) is not nn.Linear:
            raise UnsupportedAdapterError(
                f"{name}.{factor} is a {type(linear).__name__}, not a Linear; retrain with LoRA on linear layers only."
            )
        factors.append(linear)
        use: Use = DoraFactorUse(linear, factors[0]) if dora else LinearUse(linear)
        yield Site(f"{name}.{factor}", name, (use,), cast(nn.Parameter, linear.weight), linear.bias)
    if dora:
        require_scales(name, module.get_base_layer())
        magnitude = cast(nn.Parameter, module.lora_magnitude_vector[adapter].weight)
        use = MagnitudeUse(cast(nn.Module, module), magnitude)
        yield Site(f"{name}.lora_magnitude_vector", name, (use,), magnitude)


@dataclasses.dataclass(frozen=True, eq=False)
class DoraFactorUse(LinearUse):
    """A factor of a DoRA pair. PEFT also calls it on the identity, to compute the weight's norms.

    The norms are constants to autograd (Liu et al., "DoRA", ICML 2024, section 4.3), in training and so here: the
    posterior's model is the one that was trained.

    Attributes:
        hooked: lora_A or lora_B.
        first: lora_A.
    """

    first: nn.Linear

    def counts(self, args: Sequence[Any]) -> bool:
        """See :meth:`Use.counts`.

        Args:
            args: The call's positional arguments.

        Returns:
            False where the input is the identity, or for lora_B the identity's image under lora_A.
        """
        x: Tensor = args[0]
        size = self.first.weight.shape[1]
        if x.dim() != 2 or x.shape[0] != size:
            return True
        if self.hooked is self.first:
            return not torch.equal(x, torch.eye(size, dtype=x.dtype, device=x.device))
        return not torch.equal(x, self.first.weight.detach().T)


@dataclasses.dataclass(frozen=True, eq=False)
class MagnitudeUse(LinearUse):
    """DoRA's magnitude m: ``y = m * v(x) + b``, v the normalised weight's output.

    Attributes:
        hooked: PEFT's layer.
        magnitude: m, (out,).
    """

    magnitude: nn.Parameter

    def keep(self, args: Sequence[Any], output: Tensor) -> Tensor:
        """See :meth:`Use.keep`: v(x) = (y - b) / m."""
        bias = getattr(getattr(self.hooked, "get_base_layer")(), "bias", None)  # noqa: B009 - typed nn.Module
        scaled = output.detach() if bias is None else output.detach() - bias.detach()
        return scaled / self.magnitude.detach()

    def tokens(self, kept: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Use.tokens`."""
        return torch.ones_like(gradient[..., :1]), gradient * kept
