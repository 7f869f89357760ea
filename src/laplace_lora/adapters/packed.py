"""Weights that a quantiser keeps in a form of its own: told apart, read, and made ready for gradients.

Known are bitsandbytes' 4-bit and 8-bit weights and torchao's tensors. None of those packages is imported here unless
the model already holds its weights.
"""

import contextlib
import copy
import importlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from laplace_lora.errors import UnsupportedAdapterError


def is_packed(parameter: Tensor) -> bool:
    """Say whether a weight is a quantiser's.

    Args:
        parameter: Any weight.

    Returns:
        Whether it is.
    """
    return _is_torchao(parameter) or _is_4bit(parameter) or _is_8bit(parameter)


def is_quantised(model: nn.Module) -> bool:
    """Say whether any weight of a model is a quantiser's.

    Args:
        model: The model.

    Returns:
        Whether one is.
    """
    return any(map(is_packed, model.parameters()))


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what ``model.state_dict()`` does, without what quantised layers add to it.

    Those of bitsandbytes do more than that: they put weights that were rearranged for a CPU in order, in place, but
    not their scales (0.50), and the model is lost.

    Args:
        model: The model.

    Returns:
        Its parameters and persistent buffers.
    """
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        for key, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if key not in module._non_persistent_buffers_set:
                state[f"{name}.{key}" if name else key] = buffer
    return state


def stored_values(owner: nn.Module, parameter: Tensor) -> list[tuple[str, Tensor]]:
    """Return the plain tensors that make up a weight, the same before and after the model has run.

    Args:
        owner: The module that holds the weight.
        parameter: The weight.

    Returns:
        Names and detached tensors: of a quantised weight its codes, under an empty name, and its scales where they
        are exact (those of double quantisation depend on the device, by rounding); else the weight alone.
    """
    if _is_torchao(parameter):
        return list(_flattened("", parameter.detach()))
    if _is_8bit(parameter):
        # bitsandbytes moves the scales from the weight to the module in the first forward pass.
        scales: Any = getattr(parameter, "SCB", None)
        scales = getattr(getattr(owner, "state", None), "SCB", None) if scales is None else scales
        return [("", parameter.data), *([] if scales is None else [(".scales", scales)])]
    state = getattr(parameter, "quant_state", None) if _is_4bit(parameter) else None
    if state is None:
        return [("", parameter.detach())]
    codes, state = (parameter.data, state) if not _is_rearranged(state) else _in_order(parameter)
    values = [("", codes.view(torch.uint8))]
    if not (state.nested or getattr(state, "original_nested", False)):
        # A CPU's own arrangement keeps the scales in bfloat16.
        values.append((".scales", state.absmax.to(torch.bfloat16)))
    return values


def is_finite(owner: nn.Module, parameter: Tensor) -> bool:
    """Say whether all values of a weight are finite, without dequantising it.

    Args:
        owner: The module that holds it.
        parameter: The weight.

    Returns:
        Whether they are.
    """
    values = [value for _, value in stored_values(owner, parameter)]
    state = getattr(parameter, "quant_state", None)
    if getattr(state, "nested", False):
        values += [state.state2.absmax, state.offset]  # type: ignore[union-attr]
    return all(bool(torch.isfinite(value).all()) for value in values if value.is_floating_point())


def require_scales(name: str, layer: nn.Module) -> None:
    """Refuse DoRA on bitsandbytes' 8-bit layers on a CPU, which PEFT cannot run.

    PEFT dequantises the weight for its norms and puts it back without its scales.

    Args:
        name: Qualified name of the adapted module.
        layer: Its base layer.

    Raises:
        UnsupportedAdapterError: It is such a layer.
    """
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and _is_8bit(weight) and weight.device.type == "cpu":
        raise UnsupportedAdapterError(
            f"{name}: PEFT loses the scales of 8-bit weights under DoRA on a CPU; load the base in 'nf4' or "
            "'torchao-int8' or without quantization, or run on a GPU."
        )


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Keep a model's quantised layers in the form that gradients can be taken of, and leave them as they were.

    On CPUs with bfloat16 instructions bitsandbytes rearranges 4-bit weights for inference, in eval mode and for
    good, and the product with them has no gradient: Jacobians would lack every path through such a layer. Here the
    weights are put in order again, and are not rearranged until the end.

    Args:
        model: The model.

    Yields:
        Nothing.

    Raises:
        UnsupportedAdapterError: bitsandbytes has spoilt the weights.
    """
    # PEFT's layers show their base layer's weight as their own.
    layers: list[Any] = [m for m in model.modules() if _is_4bit(m._parameters.get("weight"))]
    willing = [layer for layer in layers if getattr(layer, "support_avx512bf16_for_cpu", False)]
    rearranged = [layer for layer in layers if _is_rearranged(layer.weight.quant_state)]
    before = [(layer.weight.data, layer.weight.quant_state) for layer in rearranged]
    for layer in layers:
        if (
            layer not in rearranged
            and layer.weight.quant_state is not None
            and layer.weight.quant_state.absmax.dim() > 1
        ):
            raise UnsupportedAdapterError(
                "the scales of 4-bit weights are in disorder: bitsandbytes' state_dict() (which save_pretrained calls) "
                "leaves them so after a prediction on this CPU; load the model anew."
            )
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    try:
        logger.addFilter(_says_more_than_a_cast)
        for layer in willing:
            layer.support_avx512bf16_for_cpu = False
        for layer in rearranged:
            layer.weight.data, layer.weight.quant_state = _in_order(layer.weight)
        yield
    finally:
        for layer, (data, state) in zip(rearranged, before, strict=True):
            layer.weight.data, layer.weight.quant_state = data, state
        for layer in willing:
            layer.support_avx512bf16_for_cpu = True
        logger.removeFilter(_says_more_than_a_cast)


def _says_more_than_a_cast(record: logging.LogRecord) -> bool:
    # Said by every 8-bit layer in every forward pass in another dtype than float16.
    return "inputs will be cast" not in record.getMessage()


def _is_torchao(parameter: Tensor) -> bool:
    return type(parameter).__module__.startswith("torchao.")


def _is_4bit(parameter: Any) -> bool:
    return type(parameter).__name__ == "Params4bit"


def _is_8bit(parameter: Tensor) -> bool:
    return type(parameter).__name__ == "Int8Params"


def _is_rearranged(state: Any) -> bool:
    return bool(getattr(state, "packing_format_for_cpu", False))


def _in_order(weight: Any) -> tuple[Tensor, Any]:
    """Undo the arrangement for CPUs: codes as they are stored, and scales in float32, rounded to bfloat16 before."""
    functional: Any = importlib.import_module("bitsandbytes.functional")
    # The scales are put in order here: bitsandbytes leaves them transposed, or quantises them anew.
    state = copy.copy(weight.quant_state)
    nested, state.original_nested = state.original_nested, False
    codes, state = functional._convert_weight_packed_for_cpu_inverse(weight.data, state)
    state.absmax = state.absmax.T.float().contiguous().view(-1)
    state.original_nested = nested
    return codes, state


def _flattened(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    if not hasattr(value, "__tensor_flatten__"):
        yield name, value
        return
    for inner in value.__tensor_flatten__()[0]:
        yield from _flattened(f"{name}.{inner}", getattr(value, inner))
