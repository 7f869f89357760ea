"""Where NaN and infinity come from: the first weight or module of a model that holds or makes one."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from laplace_lora.adapters.packed import is_finite
from laplace_lora.errors import UnsupportedInputError


def require_finite(logits: Tensor, model: nn.Module, run: Callable[[], Any]) -> None:
    """Refuse logits that are not finite, and name where they come from. Costs another forward pass only then.

    Args:
        logits: What the model gave.
        model: The model.
        run: Runs it again on the same inputs.

    Raises:
        UnsupportedInputError: A logit is NaN or infinite.
    """
    if bool(torch.isfinite(logits).all()):
        return
    raise UnsupportedInputError(
        f"the model gave logits that are not finite: {_origin(model, run)}; load a sound checkpoint, or the base in "
        "bfloat16 or float32 if it overflows."
    )


def _origin(model: nn.Module, run: Callable[[], Any]) -> str:
    for name, parameter in model.named_parameters():
        if not is_finite(model.get_submodule(name.rpartition(".")[0]), parameter):
            return f"the weight {name} holds NaN or infinite values"
    bad: list[str] = []

    def make_hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            # Masks hold infinities by design; what counts is a module that makes them of finite inputs.
            if not bad and not all(map(_finite, _tensors(output))) and all(map(_finite, _tensors(args))):
                bad.append(name)

        return hook

    handles = [module.register_forward_hook(make_hook(name)) for name, module in model.named_modules() if name]
    try:
        # With gradients, as in the pass that failed: what hooks into it expects them.
        with torch.enable_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return f"{bad[0]} turns finite inputs into NaN or infinity" if bad else "no single module makes them"


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
