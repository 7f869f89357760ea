"""Biases of the base model that LoRA trains beside its factors (``LoraConfig(bias="lora_only")`` or ``"all"``)."""

from collections.abc import Iterator, Mapping
from typing import cast

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from laplace_lora.adapters.site import ConstantUse, Site
from laplace_lora.errors import UnsupportedAdapterError

# Modules that end by adding their bias.
_ADDING = (nn.Linear, nn.LayerNorm, Conv1D)


def bias_sites(model: nn.Module, keys: Mapping[int, list[str]], accounted: set[int]) -> Iterator[Site]:
    """Find the biases among an adapter's parameters.

    Args:
        model: The PEFT model.
        keys: The adapter's state dict, as ``id`` of a parameter to its keys.
        accounted: ``id`` of the parameters that other sites hold.

    Yields:
        One site per bias, a vector.

    Raises:
        UnsupportedAdapterError: A bias is not added to its module's output.
    """
    adapted = {f"{name}.base_layer": module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, module in model.named_modules():
        # PEFT keeps what a module trained in full replaced, and bias="all" marks its bias as trained; nothing uses it.
        if ".original_module" in name:
            continue
        # Not by the attribute: PEFT's layers show their base layer's.
        bias = module._parameters.get("bias")
        if bias is None or id(bias) not in keys or id(bias) in accounted:
            continue
        if not isinstance(module, _ADDING):
            raise UnsupportedAdapterError(
                f"{name}.bias ({type(module).__name__}) is trained, and how it acts is not known; retrain with "
                "LoraConfig(bias='none')."
            )
        # DoRA takes the bias off the base layer's output and puts it back: what counts is the adapted layer's.
        acting = cast(nn.Module, adapted.get(name, module))
        yield Site(f"{name.removesuffix('.base_layer')}.bias", name, (ConstantUse(acting),), bias)
