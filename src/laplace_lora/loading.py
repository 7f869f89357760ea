"""From a folder or a hub id to a model with its adapter, its tokenizer and the names of its classes."""

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoTokenizer

from laplace_lora.adapters import load_classifier, read_saved_adapter
from laplace_lora.errors import AdapterFileError
from laplace_lora.persistence import CONFIG_NAME, TRAINING_NAME, download_adapter
from laplace_lora.readouts import label_names_of

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json")


def load_adapter(
    path_or_hub_id: str | Path,
    base: str | Path | None = None,
    revision: str | None = None,
    dtype: Any = "auto",
    device_map: Any = None,
) -> tuple[nn.Module, Any, tuple[str, ...] | None]:
    """Load a LoRA adapter onto its base model.

    Args:
        path_or_hub_id: Folder that PEFT's ``save_pretrained`` wrote, or a repository on the Hugging Face hub.
        base: Folder or hub id of the base model; from adapter_config.json if not given.
        revision: Revision of the base model on the hub; from adapter_config.json if not given.
        dtype: dtype of the base, as for ``from_pretrained``; ``"auto"`` is the checkpoint's own.
        device_map: Where the base's layers go, as for ``from_pretrained``.

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
    model, base_name, base_revision = load_classifier(saved, base, revision, dtype, device_map)
    has_own = any((folder / name).exists() for name in TOKENIZER_FILES)
    tokenizer = _load_tokenizer(str(folder) if has_own else base_name, None if has_own else base_revision)
    set_padding(model, tokenizer)
    return model, tokenizer, _label_names(folder, model)


def saved_input_format(folder: Path) -> dict[str, Any] | None:
    """Read how inputs were made, as saved with a posterior or, before there is one, by ``laplace-lora train``.

    Args:
        folder: The adapter's folder.

    Returns:
        The entry ``input_format``, unchecked, or None.
    """
    for name in (CONFIG_NAME, TRAINING_NAME):
        try:
            document = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue  # a damaged posterior is reported where it is read in earnest
        form = document.get("input_format") if isinstance(document, dict) else None
        if isinstance(form, dict):
            return form
    return None


def _load_tokenizer(source: str, revision: str | None) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except Exception as error:  # transformers and tokenizers raise whatever they please
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
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
    embeddings = model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id is None:
        stand_in = tokenizer.eos_token or tokenizer.unk_token
        if stand_in is None:
            raise AdapterFileError(
                "the tokenizer has no padding, end or unknown token; set tokenizer.pad_token and save it beside the "
                "adapter."
            )
        tokenizer.pad_token = stand_in
        warnings.warn(f"the tokenizer has no padding token; {stand_in!r} is used.", stacklevel=3)
    if tokenizer.pad_token_id >= embeddings:
        raise AdapterFileError(
            f"the padding token {tokenizer.pad_token!r} has index {tokenizer.pad_token_id}, the base has {embeddings} "
            "embeddings; save the tokenizer that the adapter was trained with beside it."
        )
    config: Any = model.get_base_model().config
    if getattr(config, "pad_token_id", None) is None:
        # Causal classifiers find the last real token by it.
        config.pad_token_id = tokenizer.pad_token_id


def _label_names(folder: Path, model: Any) -> tuple[str, ...] | None:
    names = (saved_input_format(folder) or {}).get("label_names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return label_names_of(model)
