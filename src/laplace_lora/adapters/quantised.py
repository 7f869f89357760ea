"""Base models loaded in fewer bits: which quantiser, set up how, and what it must leave alone."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.utils.import_utils import is_accelerate_available, is_bitsandbytes_available, is_torchao_available

from laplace_lora.adapters.packed import is_quantised
from laplace_lora.errors import AdapterFileError, LaplaceLoRAError, MissingExtraError

#: What a base can be loaded in: bitsandbytes NF4, plain or with its scales quantised too (double quantisation, as
#: QLoRA has it), bitsandbytes LLM.int8, torchao int8 (weights only).
QUANTIZATIONS = ("nf4", "nf4-double", "int8", "torchao-int8")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PREFIX = "base_model.model."


def quantization_config(name: str | None, dtype: Any, config: Any = None, keep: Sequence[str] = ()) -> Any | None:
    """Set a quantiser up for ``from_pretrained(quantization_config=...)``.

    Args:
        name: One of :data:`QUANTIZATIONS`, or None for none (or the checkpoint's own).
        dtype: dtype of what is not quantised, and that matrices are multiplied in; ``"auto"`` is the checkpoint's.
        config: The base's configuration.
        keep: Modules to leave as they are, from :func:`kept_modules`; the quantiser's choice if there are none.

    Returns:
        The configuration, or None.

    Raises:
        LaplaceLoRAError: The name is unknown, or the dtype is none that quantisers know.
        MissingExtraError: The quantiser is not installed.
        AdapterFileError: The checkpoint is quantised already.
    """
    if name is None:
        return None
    if name not in QUANTIZATIONS:
        raise LaplaceLoRAError(f"quantization {name!r} is not known; choose one of {', '.join(QUANTIZATIONS)}.")
    if getattr(config, "quantization_config", None) is not None:
        raise AdapterFileError(
            f"the base is saved in a quantised form already, and cannot be quantised again as {name!r}; leave "
            "quantization out."
        )
    _require_packages(name)
    dtype = _product_dtype(dtype, config)
    skipped = list(keep) or None
    if name == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=name == "nf4-double",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def kept_modules(base: nn.Module, saved: Iterable[str]) -> list[str]:
    """List the modules of a base that must not be quantised.

    Args:
        base: The base model, which may be empty (on the meta device).
        saved: Names of the tensors in an adapter's file.

    Returns:
        Names of the modules that the adapter brings in full, as its classification head, and of the model's last
        layer.
    """
    names = dict(base.named_modules())
    full = {key.removeprefix(_PREFIX).removesuffix(".weight") for key in saved if key.endswith(".weight")}
    kept = {name for name in full if name in names and "lora_" not in name}
    find = getattr(base, "get_output_embeddings", None)
    head = find() if callable(find) else None
    kept.update(name for name, module in names.items() if head is not None and module is head)
    # What transformers leaves alone by itself, which a list of one's own replaces.
    last = list(base.named_parameters())[-1:]
    kept.update(name.rpartition(".")[0] for name, _ in last)
    return sorted(kept)


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model, or refuse to where its quantised weights would not follow whole.

    Args:
        model: The model.
        device: Where it is to be.

    Returns:
        The model.

    Raises:
        LaplaceLoRAError: It is quantised and on another device.
    """
    if not is_quantised(model):
        return model.to(device)
    here = {parameter.device for parameter in model.parameters()}
    if any(place.type != device.type or device.index not in (None, place.index) for place in here):
        raise LaplaceLoRAError(
            f"a quantised model cannot be moved to {device}; load it there with device_map={{'': '{device}'}}."
        )
    return model


def _require_packages(name: str) -> None:
    # These also ask for the version that transformers needs.
    needed = (
        {"torchao": is_torchao_available} if name == "torchao-int8" else {"bitsandbytes": is_bitsandbytes_available}
    )
    needed["accelerate"] = is_accelerate_available
    missing = [package for package, is_available in needed.items() if not is_available()]
    if missing:
        raise MissingExtraError(
            f"quantization {name!r} needs {' and '.join(missing)} in a recent version; run: pip install "
            "'laplace-lora[quantized]'."
        )


def _product_dtype(dtype: Any, config: Any) -> torch.dtype:
    if dtype is None or dtype == "auto":
        dtype = getattr(config, "dtype", None) or torch.float32
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype.removeprefix("torch."), dtype)
    if dtype not in _DTYPES:
        given = str(dtype).removeprefix("torch.")
        raise LaplaceLoRAError(f"a base in {given} cannot be quantised; give dtype float32, bfloat16 or float16.")
    return dtype
