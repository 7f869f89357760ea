"""An adapter and a data file, brought together: what every verb begins with."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from laplace_lora.commands.settings import AdapterSource
from laplace_lora.data import DataFile, Encoder, LabelReader, RowFormat, scan
from laplace_lora.data.scan import Labels
from laplace_lora.errors import AdapterFileError, LaplaceLoRAError, UnsupportedInputError
from laplace_lora.loading import load_adapter
from laplace_lora.persistence import InputFormat
from laplace_lora.readouts import is_causal

_DTYPES = ("auto", "float32", "bfloat16", "float16")
# Tokenizers without a limit say a number of this kind.
_NO_LIMIT = 10**6


@dataclasses.dataclass
class OpenAdapter:
    """A loaded adapter.

    Attributes:
        model: The PEFT model, on its device.
        tokenizer: Its tokenizer.
        label_names: Names of its classes, or None.
        classes: Number of logits, K.
    """

    model: nn.Module
    tokenizer: Any
    label_names: tuple[str, ...] | None
    classes: int

    @property
    def labels(self) -> LabelReader:
        """Reads labels of this task."""
        return LabelReader(self.classes, self.label_names)

    @property
    def pairs(self) -> bool:
        """Whether the tokenizer puts something between two texts."""
        return self.tokenizer.sep_token is not None

    def scan(self, path: Path, form: InputFormat, labels: Labels, name: str | None = None) -> DataFile:
        """Check a data file before anything is run on it.

        Args:
            path: The file.
            form: How its rows become text; recognised from the first row if its template is None.
            labels: Whether every row must have a label.
            name: What messages call it.

        Returns:
            The file.
        """
        known = None if form.template is None else RowFormat(form.template, form.pair_template)
        return scan(path, self.labels, form=known, pairs=self.pairs, labels=labels, name=name)

    def complete(self, form: InputFormat, file: DataFile) -> InputFormat:
        """Fill in what was not given of an input format.

        Args:
            form: What was given.
            file: A file that was scanned with it.

        Returns:
            The format, complete.
        """
        return InputFormat(
            label_names=self.label_names,
            template=file.form.template,
            max_length=form.max_length or default_max_length(self.model, self.tokenizer),
            padding_side=form.padding_side or default_padding_side(self.model, self.tokenizer),
            pair_template=file.form.pair_template,
        )

    def encoder(self, form: InputFormat) -> Encoder:
        """Return what makes batches of texts.

        Args:
            form: A complete format.

        Returns:
            The encoder.
        """
        return Encoder(self.tokenizer, form.max_length, form.padding_side or "right")


def open_adapter(source: AdapterSource, label_names: tuple[str, ...] | None = None) -> OpenAdapter:
    """Load an adapter onto its device.

    Args:
        source: Where it comes from.
        label_names: Names of its classes; those saved with it if not given.

    Returns:
        The adapter.

    Raises:
        LaplaceLoRAError: It, its base, or the names cannot be used.
        AdapterFileError: The names saved with it do not fit its classes.
    """
    if source.dtype not in _DTYPES:
        raise LaplaceLoRAError(f"dtype {source.dtype!r} is not known; choose one of {', '.join(_DTYPES)}.")
    device = _device(source.device)
    # A relative folder is a folder, not a repository of the same name.
    adapter: str | Path = Path(source.adapter) if Path(source.adapter).exists() else source.adapter
    dtype = source.dtype if source.dtype == "auto" else getattr(torch, source.dtype)
    model, tokenizer, names = load_adapter(adapter, source.base, source.revision, dtype)
    config: Any = getattr(model, "config", None)
    classes = int(config.num_labels)
    if label_names is None and names is not None and len(names) != classes:
        raise AdapterFileError(f"{len(names)} label names are saved for {classes} classes; give them with --labels.")
    opened = OpenAdapter(model.to(device), tokenizer, label_names or names, classes)
    opened.labels  # noqa: B018 - refuses names that do not fit before any file is read
    return opened


def default_max_length(model: nn.Module, tokenizer: Any) -> int | None:
    """Return the longest input that both model and tokenizer take, in tokens, or None without a limit.

    Args:
        model: The model.
        tokenizer: Its tokenizer.

    Returns:
        A number of tokens, special ones included.
    """
    limits = [tokenizer.model_max_length]
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(positions, int):
        limits.append(positions)
    smallest = min(limits)
    return int(smallest) if smallest < _NO_LIMIT else None


def default_padding_side(model: nn.Module, tokenizer: Any) -> str:
    """Return the side to pad on: right for encoders, which pool the first token, else as the tokenizer has it.

    Args:
        model: The model.
        tokenizer: Its tokenizer.

    Returns:
        ``left`` or ``right``.
    """
    return str(tokenizer.padding_side) if is_causal(model) else "right"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UnsupportedInputError(f"device {name!r} cannot be used ({reason}); give --device cpu.") from None
    return device
