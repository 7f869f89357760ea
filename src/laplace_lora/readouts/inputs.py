"""Batches on their way into a model: labels taken out, and completed so that padding changes nothing."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from laplace_lora.errors import UnsupportedInputError

# Collators name the target either way; neither belongs to the model's forward pass here.
LABEL_KEYS = ("labels", "label")


def label_names_of(model: nn.Module) -> tuple[str, ...] | None:
    """Read the names of the classes from a model's configuration.

    Args:
        model: The PEFT model, or its base.

    Returns:
        Names in the order of the logits, or None if they are missing or the default LABEL_0, LABEL_1, ...
    """
    names = getattr(model_config(model), "id2label", None)
    if not isinstance(names, Mapping) or not names:
        return None
    ordered = tuple(str(names[key]) for key in sorted(names, key=int))
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(ordered)) else ordered


def is_causal(model: nn.Module) -> bool:
    """Say whether a model reads from left to right, so that padding on either side can be exact.

    Args:
        model: The PEFT model.

    Returns:
        True for decoder-only language models, also with a classification head.
    """
    return is_causal_type(getattr(model_config(model), "model_type", ""))


def is_causal_type(model_type: str) -> bool:
    """Say the same of an architecture; transformers can also load encoders as causal language models.

    Args:
        model_type: As config.json names it.

    Returns:
        True for decoder-only language models.
    """
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def prepare_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Complete a batch so that padding cannot change the result.

    Args:
        model: The PEFT model.
        batch: Model inputs, without labels.

    Returns:
        Keyword arguments of the model's forward pass. Causal models get ``position_ids`` counted from
        the first real token, and no cache.

    Raises:
        UnsupportedInputError: An encoder's batch is padded on the left, or a row has no real token.
    """
    inputs: dict[str, Any] = dict(batch)
    mask = batch.get("attention_mask")
    if mask is not None and not bool(mask.bool().any(dim=1).all()):
        raise UnsupportedInputError("an example has no real token (attention_mask all 0); remove it from the data.")
    if not is_causal(model):
        if mask is not None and bool((mask[:, 0] == 0).any()):
            raise UnsupportedInputError(
                "the batch is padded on the left, but this model reads its answer from the first position; set "
                "tokenizer.padding_side='right'."
            )
        return inputs
    accepted = inspect.signature(base_model(model).forward).parameters
    if mask is not None and "position_ids" in accepted and "position_ids" not in inputs:
        inputs["position_ids"] = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        inputs.setdefault("use_cache", False)
    return inputs


def split_labels(batch: Mapping[str, Any], device: torch.device) -> tuple[dict[str, Tensor], Tensor | None]:
    """Move a batch to the model's device and take the labels out of it.

    Args:
        batch: What a Hugging Face collator makes: names to tensors.
        device: Where the model's inputs live.

    Returns:
        Model inputs, and the labels or None.

    Raises:
        UnsupportedInputError: The batch is not a mapping of tensors with the same number of rows.
    """
    if not isinstance(batch, Mapping) or not batch:
        raise UnsupportedInputError(
            f"a batch is a {type(batch).__name__}, not a mapping of names to tensors; use a Hugging Face collator."
        )
    tensors: dict[str, Tensor] = {}
    for key, value in batch.items():
        if not isinstance(value, Tensor):
            raise UnsupportedInputError(
                f"batch entry {key!r} is a {type(value).__name__}, not a tensor; remove that column or collate it."
            )
        moved = value.to(device)
        # What was made under inference_mode takes no part in a backward pass; a copy made outside of it does.
        tensors[str(key)] = moved.clone() if moved.is_inference() else moved
    if "margin" in tensors:
        raise UnsupportedInputError(
            "the batch has a 'margin', which the preference likelihood does not know; remove that column, and train "
            "without margins."
        )
    labels = next((tensors[key] for key in LABEL_KEYS if key in tensors), None)
    inputs = {key: value for key, value in tensors.items() if key not in LABEL_KEYS}
    sizes = {value.shape[0] if value.dim() else 0 for value in tensors.values()}
    if not inputs or len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items())
        raise UnsupportedInputError(
            f"batch entries disagree on the number of examples, or there is none: {shapes}; check the collator."
        )
    return inputs, labels


def padding_token(model: nn.Module) -> int | None:
    """Return the token by which a decoder knows padding.

    Args:
        model: The PEFT model, or its base.

    Returns:
        The token, or None if it knows none.
    """
    config = model_config(model)
    token: int | None = getattr(getattr(config, "get_text_config", lambda: config)(), "pad_token_id", None)
    return token


def base_model(model: nn.Module) -> nn.Module:
    """Return the model under PEFT's wrapper.

    Args:
        model: The PEFT model, or its base.

    Returns:
        The base model.
    """
    get_base = getattr(model, "get_base_model", None)
    return get_base() if callable(get_base) else model


def model_config(model: nn.Module) -> Any:
    """Return the base model's configuration.

    Args:
        model: The PEFT model, or its base.

    Returns:
        The configuration, or None.
    """
    return getattr(base_model(model), "config", None)
