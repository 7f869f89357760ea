"""From a folder or a hub id to a model with its adapter, its tokenizer and the names of its classes."""

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer

from laplace_lora.adapters import load_model, read_saved_adapter
from laplace_lora.errors import AdapterFileError, PosteriorFileError, first_line, is_rust_panic
from laplace_lora.persistence import (
    CONFIG_NAME,
    TRAINING_NAME,
    InputFormat,
    download_adapter,
    input_format_from,
    read_description,
    restored_readout,
)
from laplace_lora.readouts import Readout, is_causal, label_names_of

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)


def load_adapter(
    path_or_hub_id: str | Path,
    base: str | Path | None = None,
    revision: str | None = None,
    dtype: Any = "auto",
    device_map: Any = None,
    quantization: str | None = None,
) -> tuple[nn.Module, Any, tuple[str, ...] | None]:
    """Load a LoRA adapter onto its base model.

    Args:
        path_or_hub_id: Folder that PEFT's ``save_pretrained`` wrote, or a repository on the Hugging Face hub.
        base: Folder or hub id of the base model; from adapter_config.json if not given.
        revision: Revision of the base model on the hub; from adapter_config.json if not given.
        dtype: dtype of the base, as for ``from_pretrained``; ``"auto"`` is the checkpoint's own.
        device_map: Where the base's layers go, as for ``from_pretrained``.
        quantization: Quantise the base as it is loaded: ``nf4``, ``nf4-double`` or ``int8`` (bitsandbytes), or
            ``torchao-int8``.

    Returns:
        The model in eval mode, its weights frozen; its tokenizer (the adapter's own, else the base's), with a padding
        token; and the names of the classes in the order of the logits: those saved with a posterior, else with the
        training, else the base's own, or None where there are only LABEL_0, LABEL_1, ...

    Raises:
        AdapterFileError: A file is missing or damaged, or adapter, base and tokenizer do not belong together; says
            what differs.
    """
    folder = download_adapter(path_or_hub_id)
    saved = read_saved_adapter(folder)
    base = None if base is None else str(base)
    model, base_name, base_revision = load_model(saved, base, revision, dtype, device_map, quantization)
    has_own = any((folder / name).exists() for name in TOKENIZER_FILES)
    tokenizer = _load_tokenizer(str(folder) if has_own else base_name, None if has_own else base_revision)
    set_padding(model, tokenizer)
    return model, tokenizer, _label_names(folder, model)


def saved_input_format(folder: Path) -> InputFormat | None:
    """Read how inputs were made, as saved with a posterior or, before there is one, by ``laplace-lora train``.

    Args:
        folder: The adapter's folder.

    Returns:
        The format, or None if neither is there. A damaged posterior is not used, which a warning says: it can be
        fitted anew.

    Raises:
        AdapterFileError: What ``laplace-lora train`` left is damaged.
    """
    if (folder / CONFIG_NAME).exists():
        try:
            return input_format_from(read_description(folder)["input_format"])
        except (PosteriorFileError, KeyError, TypeError):
            warnings.warn(f"{folder / CONFIG_NAME} is damaged; what it says of inputs is not used.", stacklevel=2)
    path = folder / TRAINING_NAME
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and not {"library_version", "input_format"} & set(document):
            return None  # somebody else's file of that name
        return input_format_from(document["input_format"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError, PosteriorFileError) as error:
        reason = first_line(error)
        raise AdapterFileError(
            f"{path} is damaged ({reason}); copy the adapter again, or remove that file and give fit --labels, "
            "--template and --max-length."
        ) from error


def saved_readout(folder: Path) -> Readout | None:
    """Read how a model is read, as saved with a posterior or, before there is one, by ``laplace-lora train``.

    Args:
        folder: The adapter's folder.

    Returns:
        The readout, or None if neither says.

    Raises:
        AdapterFileError: What ``laplace-lora train`` left is damaged.
    """
    if (folder / CONFIG_NAME).exists():
        try:
            document = read_description(folder)
            return restored_readout(document["readout"], document.get("readout_settings", {}))
        except (PosteriorFileError, KeyError, TypeError):
            pass  # a damaged posterior can be fitted anew
    path = folder / TRAINING_NAME
    if not path.exists() or saved_input_format(folder) is None:
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    if "readout" not in document:
        return None
    try:
        return restored_readout(str(document["readout"]["name"]), document["readout"]["settings"])
    except (KeyError, TypeError, PosteriorFileError) as error:
        raise AdapterFileError(
            f"{path} is damaged ({first_line(error)}); copy the adapter again, or say how it is read with --readout."
        ) from error


def trained_quantization(folder: Path) -> str | None:
    """Read how ``laplace-lora train`` quantised the base of an adapter.

    Args:
        folder: The adapter's folder.

    Returns:
        Its name, or None where the base was not quantised or nobody says.
    """
    try:
        settings = json.loads((folder / TRAINING_NAME).read_text(encoding="utf-8"))["settings"]
        found = settings["quantization"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None  # what is damaged is said where the input format is read
    return found if isinstance(found, str) else None


def _load_tokenizer(source: str, revision: str | None) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        # Where no vocabulary is found, transformers makes a tokenizer that knows no word. Looking up a special token
        # that is damaged ends in a RecursionError.
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError("it has no vocabulary")
    except BaseException as error:  # transformers and tokenizers raise whatever they please, Rust's panics among it
        if not isinstance(error, Exception) and not is_rust_panic(error):
            raise
        reason = first_line(error)
        raise AdapterFileError(
            f"the tokenizer in {source} cannot be loaded ({reason}); save it beside the adapter "
            "(tokenizer.save_pretrained)."
        ) from error
    return tokenizer


def set_padding(model: Any, tokenizer: Any) -> None:
    """Give tokenizer and model a padding token where they have none, and say so.

    Args:
        model: The PEFT model.
        tokenizer: Its tokenizer.

    Raises:
        AdapterFileError: There is no token that could stand in, or it is beyond the model's embeddings.
    """
    embedded = model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id is None:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            raise AdapterFileError(
                "the tokenizer has no padding, end or unknown token; set tokenizer.pad_token and save it beside the "
                "adapter."
            )
        tokenizer.pad_token = stand_in
        if tokenizer.pad_token_id is None:
            raise AdapterFileError(
                f"the tokenizer has no padding token, and its {stand_in!r} is not in its vocabulary; set "
                "tokenizer.pad_token and save it beside the adapter."
            )
        warnings.warn(f"the tokenizer has no padding token; {stand_in!r} is used.", stacklevel=3)
    if tokenizer.pad_token_id >= embedded:
        raise AdapterFileError(
            f"the padding token {tokenizer.pad_token!r} has index {tokenizer.pad_token_id}, the base has {embedded} "
            "embeddings; save the tokenizer that the adapter was trained with beside it."
        )
    config: Any = model.get_base_model().config
    if getattr(config, "pad_token_id", None) is None or is_causal(model):
        # Causal classifiers find the last real token by it: it must be what this tokenizer pads with.
        config.pad_token_id = tokenizer.pad_token_id


def _label_names(folder: Path, model: Any) -> tuple[str, ...] | None:
    saved = saved_input_format(folder)
    # Where a format was saved without names, the classes have none; those of the base are another task's.
    return saved.label_names if saved is not None else label_names_of(model)
