"""One model pass, turned into per-example Jacobians of the logits, matrix by matrix.

For a linear layer ``y = W x`` the Jacobian of a logit of example n is ``J_n = sum_t g_nt x_nt^T``, g the
gradient at the layer's output. One backward pass of a batch's summed logits therefore carries every
example's Jacobian (examples do not mix), and no per-example backward pass is ever needed: DESIGN, section
2, items 1 to 3. Gradients are handed on inside the tensor hooks that meet them and are never kept.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laplace_lora.adapters import Site
from laplace_lora.errors import UnsupportedAdapterError, UnsupportedInputError


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of statistics for weights of a dtype: never below float32.

    Args:
        dtype: A floating-point dtype.

    Returns:
        float64 for float64, otherwise float32.
    """
    return torch.promote_types(dtype, torch.float32)


@dataclasses.dataclass(frozen=True)
class SiteGradient:
    """What one backward pass says about one weight matrix.

    Attributes:
        index: Position of the matrix among the sites of the pass.
        row: Number of the cotangent, counted from 0.
        inputs: (B, T, in) inputs of the layer, without the bias's 1.
        gradient: (B, T, out) gradient at the layer's output, 0 at padding.
        mask: (B, T) True at real tokens (of a head, those it is read at), or None where all are.
        has_bias: Whether the matrix has a bias as its last column.
    """

    index: int
    row: int
    inputs: Tensor
    gradient: Tensor
    mask: Tensor | None
    has_bias: bool

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Return inputs and gradients token by token, in the statistics dtype.

        Returns:
            (B, T, in) inputs, with the bias's 1 as last column, and (B, T, out) gradients; both are 0
            at padding.
        """
        x = self.inputs.to(statistics_dtype(self.inputs.dtype))
        if self.has_bias:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=-1)
        if self.mask is not None:
            x = x.masked_fill(~self.mask[..., None], 0.0)
        return x, self.gradient.to(x.dtype)

    def jacobian(self) -> Tensor:
        """Return every example's Jacobian of the cotangent's logit combination.

        Returns:
            (B, out, in), the bias as last column, in the statistics dtype.
        """
        x = self.inputs.to(statistics_dtype(self.inputs.dtype))
        g = self.gradient.to(x.dtype)
        # Both are the same sums; a product with few rows is the faster one (5 x for a lora_B of rank 8 on a CPU).
        if g.shape[2] > x.shape[2]:
            weight = torch.bmm(x.transpose(1, 2), g).transpose(1, 2)
        else:
            weight = torch.bmm(g.transpose(1, 2), x)
        if not self.has_bias:
            return weight
        return torch.cat([weight, g.sum(dim=1)[..., None]], dim=-1)


Receiver = Callable[[SiteGradient], None]
Forward = Callable[[Mapping[str, Tensor]], Tensor]


class JacobianPass:
    """A model prepared for passes that yield Jacobians at every site.

    Use it through :func:`jacobian_pass`. Each batch takes one forward pass and one backward pass per
    cotangent; the backward pass runs to the LoRA weights and forms no weight gradient.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], forward: Forward) -> None:
        """Keep what a pass needs; no hook is set yet.

        Args:
            model: The model, already in eval mode.
            sites: The matrices to differentiate by.
            forward: Batch to (B, K) logits, calling the model exactly once.
        """
        self.model = model
        self.sites = sites
        self.run = forward
        self._probes: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._mask: Tensor | None = None
        self._batch_size = 0
        self._ran: dict[int, int] = {}
        self._row = 0
        self._receive: Receiver | None = None
        self._received: set[int] = set()
        self._logits: Tensor | None = None

    def hooks(self) -> list[RemovableHandle]:
        """Set the forward hooks.

        Returns:
            Handles that remove them.
        """
        return [
            site.linear.register_forward_hook(self._make_hook(index, site)) for index, site in enumerate(self.sites)
        ]

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Run the model on a batch and keep its graph for :meth:`rows`.

        Args:
            batch: Model inputs.

        Returns:
            (B, K) detached logits.

        Raises:
            UnsupportedAdapterError: A site did not run exactly once.
        """
        self._mask, self._batch_size = real_tokens(batch)
        self._ran = dict.fromkeys(range(len(self.sites)), 0)
        with torch.inference_mode(False), torch.enable_grad():
            self._logits = self.run(batch)
        for index, count in self._ran.items():
            if count != 1:
                raise UnsupportedAdapterError(
                    f"{self.sites[index].name} ran {count} times in one forward pass, and only weights used exactly "
                    "once are handled; retrain without this module."
                )
        return self._logits.detach()

    def rows(self, cotangents: Tensor, receive: Receiver) -> None:
        """Run one backward pass per cotangent and hand every site's gradients on.

        Args:
            cotangents: (B, K, M) M combinations of the logits for every example.
            receive: Called once per site and cotangent, from inside the backward pass.

        Raises:
            UnsupportedAdapterError: The logits do not depend on a site.
        """
        assert self._logits is not None
        logits, self._receive = self._logits, receive
        probes = list(self._probes.values())
        last = cotangents.shape[-1] - 1
        for self._row in range(last + 1):
            self._received = set()
            cotangent = cotangents[..., self._row].to(logits.dtype)
            torch.autograd.grad(logits, probes, cotangent, retain_graph=self._row < last)
            missing = set(range(len(self.sites))) - self._received
            if missing:
                raise UnsupportedAdapterError(
                    f"the logits do not depend on {self.sites[min(missing)].name}; retrain without this module."
                )
        self.release()

    def release(self) -> None:
        """Drop the graph and everything that refers to it."""
        self._logits = self._receive = None
        self._probes.clear()

    def _make_hook(self, index: int, site: Site) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def on_forward(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._ran[index] = self._ran.get(index, 0) + 1
            x = args[0].detach()
            mask = self._token_mask(site, x)
            # Adding zero changes nothing in the output but makes it depend on a scalar to differentiate by.
            # So the backward pass reaches every site, whatever was frozen, and autograd keeps one number
            # instead of the gradients themselves.
            output = output + self._probe(output)

            def on_backward(gradient: Tensor) -> None:
                if self._receive is None:
                    return
                g = gradient if gradient.dim() == 3 else gradient[:, None]
                if mask is not None:
                    g = g.masked_fill(~mask[..., None], 0.0)
                self._received.add(index)
                inputs = x if x.dim() == 3 else x[:, None]
                real = mask
                if site.trained_in_full and x.dim() == 3:
                    # A head applied at every token but read at one acts on that one: the others are no data.
                    used = (g != 0).any(dim=-1)
                    real = used if mask is None else mask & used
                self._receive(SiteGradient(index, self._row, inputs, g, real, module.bias is not None))

            output.register_hook(on_backward)
            return output

        return on_forward

    def _probe(self, output: Tensor) -> Tensor:
        key = (output.device, output.dtype)
        if key not in self._probes:
            self._probes[key] = torch.zeros((), device=output.device, dtype=output.dtype, requires_grad=True)
        return self._probes[key]

    def _token_mask(self, site: Site, x: Tensor) -> Tensor | None:
        return token_mask(site.name, x, self._mask, self._batch_size)


class HeadPass:
    """A model prepared for passes that yield the Jacobian of its last layer, without a backward pass.

    The logits are the head's outputs at one position of each example, so the Jacobian of a combination
    ``v^T f`` by the head's matrix is ``v h^T``, h the head's input there. That the logits are the head's
    outputs is checked on every batch.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], forward: Forward) -> None:
        """Keep what a pass needs; no hook is set yet.

        Args:
            model: The model, already in eval mode.
            sites: The head, one fully trained linear layer.
            forward: Batch to (B, K) logits, calling the model exactly once.

        Raises:
            UnsupportedAdapterError: There is not exactly one fully trained linear layer.
        """
        if len(sites) != 1 or not sites[0].trained_in_full:
            names = ", ".join(site.name for site in sites) or "none"
            raise UnsupportedAdapterError(
                f"last_layer needs one fully trained linear head (PEFT modules_to_save), found: {names}; use "
                "structure='kron'."
            )
        self.model = model
        self.sites = sites
        self.run = forward
        self._captured: list[tuple[Tensor, Tensor]] = []
        self._features: Tensor | None = None

    def hooks(self) -> list[RemovableHandle]:
        """Set the forward hook.

        Returns:
            The handle that removes it.
        """

        def on_forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._captured.append((args[0].detach(), output.detach()))

        return [self.sites[0].linear.register_forward_hook(on_forward)]

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Run the model on a batch and keep the head's inputs for :meth:`rows`.

        Args:
            batch: Model inputs.

        Returns:
            (B, K) logits.

        Raises:
            UnsupportedAdapterError: The logits are not outputs of the head.
        """
        self._captured.clear()
        mask, batch_size = real_tokens(batch)
        with torch.no_grad():
            logits = self.run(batch)
        site = self.sites[0]
        if len(self._captured) != 1:
            raise UnsupportedAdapterError(
                f"{site.name} ran {len(self._captured)} times in one forward pass; use structure='kron'."
            )
        inputs, outputs = self._captured[0]
        mask = token_mask(site.name, inputs, mask, batch_size)
        if inputs.dim() == 2:
            inputs, outputs = inputs[:, None], outputs[:, None]
        # Pooling only picks a position, so the right one agrees to the last bit.
        expected = logits[:, None].to(outputs.dtype)
        agree = ((outputs == expected) | (outputs.isnan() & expected.isnan())).all(dim=-1)
        if mask is not None:
            agree &= mask
        if not bool(agree.any(dim=1).all()):
            raise UnsupportedAdapterError(
                f"the logits are not the outputs of {site.name} at any position, so last_layer would be wrong; use "
                "structure='kron'."
            )
        positions = agree.shape[1] - 1 - agree.flip(1).to(torch.int8).argmax(dim=1)
        self._features = inputs[torch.arange(batch_size, device=inputs.device), positions]
        return logits

    def rows(self, cotangents: Tensor, receive: Receiver) -> None:
        """Hand on the head's gradients for every cotangent.

        Args:
            cotangents: (B, K, M) M combinations of the logits for every example.
            receive: Called once per cotangent.
        """
        assert self._features is not None
        has_bias = self.sites[0].linear.bias is not None
        for row in range(cotangents.shape[-1]):
            gradient = cotangents[:, None, :, row].to(statistics_dtype(self._features.dtype))
            receive(SiteGradient(0, row, self._features[:, None], gradient, None, has_bias))
        self.release()

    def release(self) -> None:
        """Drop what was captured."""
        self._features = None
        self._captured.clear()


def real_tokens(batch: Mapping[str, Tensor]) -> tuple[Tensor | None, int]:
    """Read which positions of a batch are real tokens.

    Args:
        batch: Model inputs.

    Returns:
        (B, T) True at real tokens, or None if there is no padding; and B.
    """
    mask = batch.get("attention_mask")
    first = mask if mask is not None else next(iter(batch.values()))
    if mask is None or bool(mask.all()):
        return None, first.shape[0]
    return mask.bool(), first.shape[0]


def token_mask(name: str, inputs: Tensor, mask: Tensor | None, batch_size: int) -> Tensor | None:
    """Match a layer's inputs to the batch's tokens.

    Args:
        name: The site's name, for messages.
        inputs: (B, d) pooled or (B, T, d) token-wise inputs of the layer.
        mask: (B, T) True at real tokens, or None.
        batch_size: B.

    Returns:
        The mask that applies to these inputs; None where every row is real.

    Raises:
        UnsupportedInputError: The inputs are laid out in another way.
    """
    if inputs.dim() == 2 and inputs.shape[0] == batch_size:
        return None
    if inputs.dim() == 3 and inputs.shape[0] == batch_size and (mask is None or inputs.shape[:2] == mask.shape):
        return mask.to(inputs.device) if mask is not None else None
    raise UnsupportedInputError(
        f"{name} received inputs of shape {tuple(inputs.shape)} for {batch_size} examples, which cannot be matched to "
        "examples and tokens; give batches without padding, or retrain without this module."
    )


@contextlib.contextmanager
def jacobian_pass(
    model: nn.Module, sites: Sequence[Site], forward: Forward, *, last_layer: bool = False
) -> Iterator[JacobianPass | HeadPass]:
    """Prepare a model for Jacobian passes and leave it as it was found, whatever happens.

    Args:
        model: The model.
        sites: The matrices to differentiate by.
        forward: Batch to (B, K) logits, calling the model exactly once.
        last_layer: Whether the sites are the head alone, which needs no backward pass.

    Yields:
        The prepared pass. Inside, the model is in eval mode, its parameters are frozen and hooks are set.
    """
    runner = (HeadPass if last_layer else JacobianPass)(model, sites, forward)
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles: list[RemovableHandle] = []
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        handles += runner.hooks()
        yield runner
    finally:
        for handle in handles:
            handle.remove()
        runner.release()
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
