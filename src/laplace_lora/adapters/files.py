"""A saved adapter as it lies on disk: its settings and the shapes of its tensors, before any model is loaded."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from laplace_lora.errors import AdapterFileError, UnsupportedAdapterError, first_line

PICKLED_NAME = "adapter_model.bin"


@dataclasses.dataclass(frozen=True)
class SavedAdapter:
    """An adapter's two files, read and found sound.

    Attributes:
        folder: Where they are.
        config: What adapter_config.json holds.
        shapes: Shape of every tensor in adapter_model.safetensors, under PEFT's names.
        dtypes: Their dtypes.
    """

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]


def read_saved_adapter(folder: Path) -> SavedAdapter:
    """Read an adapter's settings and check its weights.

    Args:
        folder: The folder that PEFT's ``save_pretrained`` wrote.

    Returns:
        The adapter's files.

    Raises:
        AdapterFileError: A file is missing or damaged, or a weight is NaN or infinite.
        UnsupportedAdapterError: It is no LoRA adapter.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterFileError(_no_adapter(folder)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path} cannot be read ({first_line(error)}); save the adapter again.") from None
    if not isinstance(config, dict):
        raise AdapterFileError(f"{path} holds no JSON object; save the adapter again.")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedAdapterError(
            f"{folder} holds an adapter of type {str(kind)[:40]}, not LORA; train a LoRA adapter."
        )
    tensors = _check_weights(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_rank(path, config, shapes)
    return SavedAdapter(folder, config, shapes, {name: tensor.dtype for name, tensor in tensors.items()})


def _check_rank(path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse a rank that no saved matrix has, before PEFT makes matrices of it."""
    pattern = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else (None,))]
    saved = {size for name, shape in shapes.items() if "lora_" in name for size in shape}
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1 or rank > max(saved, default=0):
            raise AdapterFileError(
                f"{path} says rank {str(rank)[:40]}, which the saved weights do not have; save the adapter again."
            )


def _no_adapter(folder: Path) -> str:
    if (folder / "config.json").exists():
        return (
            f"{folder} holds a whole model, not an adapter (a merged one?); give the folder with {CONFIG_NAME}, from "
            "before merging."
        )
    return f"{folder} has no {CONFIG_NAME}; give the folder that PEFT's save_pretrained wrote."


def _check_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read every tensor, and return empty ones of their shapes and dtypes."""
    path = folder / SAFETENSORS_WEIGHTS_NAME
    if not path.exists():
        pickled = f" ({PICKLED_NAME} is a pickle, which is not read)" if (folder / PICKLED_NAME).exists() else ""
        raise AdapterFileError(
            f"{folder} has no {SAFETENSORS_WEIGHTS_NAME}{pickled}; save the adapter again with a current PEFT."
        )
    tensors: dict[str, torch.Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                if not bool(torch.isfinite(tensor).all()):
                    raise AdapterFileError(
                        f"{name} in {path} holds NaN or infinite values; the training diverged: train again with a "
                        "lower learning rate."
                    )
                tensors[name] = tensor.to("meta")
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterFileError(f"{path} is damaged ({first_line(error)}); copy or save the adapter again.") from None
    return tensors
