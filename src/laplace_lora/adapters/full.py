"""Layers trained in full beside the adapter (PEFT ``modules_to_save``)."""

from collections.abc import Iterator
from typing import cast

from torch import nn

from laplace_lora.adapters.packed import is_packed
from laplace_lora.adapters.site import LinearUse, Site
from laplace_lora.errors import UnsupportedAdapterError


def full_sites(name: str, trained: nn.Module) -> Iterator[Site]:
    """Find the matrices of a module that was trained in full.

    Args:
        name: Its qualified name.
        trained: The adapter's copy of it.

    Yields:
        One site per linear layer, its bias as last column.

    Raises:
        UnsupportedAdapterError: It holds weights that are not those of a linear layer.
    """
    for inner, module in trained.named_modules():
        full = f"{name}.{inner}" if inner else name
        if type(module) is nn.Linear and is_packed(module.weight):
            raise UnsupportedAdapterError(
                f"{full} is trained in full (modules_to_save), and its weights are quantised; leave it out of the "
                "quantization (llm_int8_skip_modules, modules_to_not_convert) when the base is loaded."
            )
        if type(module) is nn.Linear:
            yield Site(
                full, full, (LinearUse(module),), cast(nn.Parameter, module.weight), module.bias, trained_in_full=True
            )
        elif next(module.parameters(recurse=False), None) is not None:
            raise UnsupportedAdapterError(
                f"{full} ({type(module).__name__}) is trained in full (modules_to_save) and is not a Linear; retrain "
                "without it, or hold it at its trained values with LaplaceConfig(include_modules_to_save=False)."
            )
