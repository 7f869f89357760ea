"""An adapter and a data file, brought together: what every verb begins with."""

import dataclasses
import warnings
from typing import Any

import torch
from torch import nn

from laplace_lora.adapters import ModelKind
from laplace_lora.adapters.quantised import to_device
from laplace_lora.commands.console import Console
from laplace_lora.commands.readout_choice import (
    ReadoutWish,
    given_form,
    label_reader,
    read_training_data,
    readout_layout,
    readout_name,
)
from laplace_lora.commands.settings import AdapterSource, local_or_hub
from laplace_lora.data import DataFile, Encoder, LabelReader, Layout, RowSource, Source, open_rows, scan
from laplace_lora.data.scan import Labels, Reader
from laplace_lora.errors import AdapterFileError, DataFileError, LaplaceLoRAError, UnsupportedInputError, first_line
from laplace_lora.loading import load_adapter, trained_quantization
from laplace_lora.persistence import InputFormat, download_adapter
from laplace_lora.readouts import Readout, is_causal, is_classifier, is_multiple_choice

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
        classes: Number of classes, K; of a language model not known before its readout is.
        kind: Kind of model.
        progress: Whether long work on files shows a progress bar.
        readout: How its outputs are read; None before that is settled.
    """

    model: nn.Module
    tokenizer: Any
    label_names: tuple[str, ...] | None
    classes: int
    kind: ModelKind = "classifier"
    progress: bool = False
    readout: Readout | None = None

    @property
    def layout(self) -> Layout:
        """How rows become inputs."""
        return readout_layout("class_logits" if self.readout is None else self.readout.name, self.kind)

    @property
    def labels(self) -> Reader:
        """Reads labels of this task."""
        name = "class_logits" if self.readout is None else self.readout.name
        return label_reader(self.layout, name, self.classes, self.label_names)

    @property
    def pairs(self) -> bool:
        """Whether the tokenizer puts something between two texts."""
        return self.tokenizer.sep_token is not None

    @property
    def shown_names(self) -> tuple[str, ...]:
        """A name for every class, its index where it has none."""
        if self.readout is not None and self.readout.name == "pairwise_reward":
            return self.labels.shown_names()
        return self.label_names or tuple(map(str, range(self.classes)))

    def choose(self, wish: ReadoutWish, data: Source, form: InputFormat) -> DataFile:
        """Settle the readout by what is asked for, the model and the training data.

        Args:
            wish: What is asked for.
            data: The training data.
            form: How its rows become text; recognised from the first row if its template is None.

        Returns:
            The data, checked.
        """
        name = readout_name(wish, self.kind, self.classes, data)
        settled = read_training_data(
            name,
            self.kind,
            wish,
            data,
            self.tokenizer,
            names=self.label_names if name in ("class_logits", "answer_tokens") else None,
            classes=self.classes if self.kind == "classifier" else None,
            template=form.template,
            pair_template=form.pair_template,
            progress=self.progress,
            chat=form.chat,
        )
        self.readout, self.label_names, self.classes = settled.readout, settled.names, settled.classes
        return settled.file

    def scan(
        self, source: Source, form: InputFormat, labels: Labels, name: str | None = None, answerable: bool = True
    ) -> DataFile:
        """Check a data file before anything is run on it.

        Args:
            source: The file, or something else with rows.
            form: How its rows become text; recognised from the first row if its template is None.
            labels: Whether every row must have a label.
            name: What messages call it.
            answerable: Whether every row must have an answer for each of its choices.

        Returns:
            The file.
        """
        file = scan(
            source,
            self.labels,
            layout=self.layout,
            form=given_form(self.layout, form.template, form.pair_template, source),
            pairs=self.pairs,
            labels=labels,
            name=name,
            progress=self.progress,
            eos_token="" if form.chat else self.tokenizer.eos_token,
        )
        if answerable and self.readout is not None and self.readout.name == "answer_tokens":
            require_answers(file, self.classes)
        return file

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
            max_length=checked_max_length(form.max_length, self.model, self.tokenizer),
            padding_side=form.padding_side or default_padding_side(self.model, self.tokenizer),
            pair_template=file.form.pair_template,
            chat=form.chat,
        )

    def encoder(self, form: InputFormat, layout: Layout | None = None) -> Encoder:
        """Return what makes batches of texts.

        Args:
            form: A complete format.
            layout: What a row's texts are to each other; the readout's if None.

        Returns:
            The encoder.
        """
        return make_encoder(self.model, self.tokenizer, form, layout or self.layout)


def require_answers(file: DataFile, answers: int) -> None:
    """Refuse rows with more choices than there are answers, and say so where some have fewer.

    Args:
        file: The data.
        answers: Number of answers, K.

    Raises:
        DataFileError: A row has more choices.
    """
    if file.most_choices > answers:
        raise DataFileError(
            f"{file.name} has a row with {file.most_choices} choices, and the adapter answers by {answers} tokens; "
            "remove such rows, or train with that many --answers."
        )
    if 0 < file.fewest_choices < answers:
        warnings.warn(
            f"some rows of {file.name} have {file.fewest_choices} choices, fewer than the {answers} answers; the "
            "answers beyond keep the little probability that the model gives them.",
            stacklevel=2,
        )


def require_readable(*sources: Source | None) -> None:
    """Refuse a wrong path before a model is loaded.

    Args:
        *sources: Data; None for one that was not given.
    """
    for source in sources:
        if source is not None:
            next(open_rows(source), None)


def say_sources(console: Console, *sources: Source | None) -> None:
    """Say of tasks' rows where they come from, how many were left out, and whose split they are.

    Args:
        console: Takes messages.
        *sources: Data; None for one that was not given. Of files there is nothing to say.
    """
    for source in sources:
        if isinstance(source, RowSource):
            console.say("data", source.shown, **source.provenance())


def warn_of_cuts(encoder: Encoder, console: Console) -> None:
    """Say how many inputs were cut.

    Args:
        encoder: Has made all batches.
        console: Takes the warning.
    """
    if encoder.truncated:
        console.warn(
            f"{encoder.truncated} inputs were cut to {encoder.max_length} tokens, at their {encoder.cut_at}; "
            "--max-length says how many are kept."
        )


def open_adapter(
    source: AdapterSource, label_names: tuple[str, ...] | None = None, *, progress: bool = False
) -> OpenAdapter:
    """Load an adapter onto its device.

    Args:
        source: Where it comes from.
        label_names: Names of its classes; those saved with it if not given.
        progress: Whether long work on files shows a progress bar.

    Returns:
        The adapter.

    Raises:
        LaplaceLoRAError: It, its base, or the names cannot be used.
        AdapterFileError: The names saved with it do not fit its classes.
    """
    if source.dtype not in _DTYPES:
        raise LaplaceLoRAError(f"dtype {source.dtype!r} is not known; choose one of {', '.join(_DTYPES)}.")
    device = chosen_device(source.device)
    adapter = local_or_hub(source.adapter)
    dtype = source.dtype if source.dtype == "auto" else getattr(torch, source.dtype)
    quantization = source.quantization or trained_quantization(download_adapter(adapter))
    quantization = None if quantization == "none" else quantization
    model, tokenizer, names = load_adapter(
        adapter,
        source.base,
        source.revision,
        dtype,
        # A quantiser works where the base is loaded.
        device_map=None if quantization is None else {"": str(device)},
        quantization=quantization,
    )
    config: Any = getattr(model, "config", None)
    kind = model_kind(model)
    classes = int(config.num_labels)
    if kind == "classifier" and label_names is None and names is not None and len(names) != classes:
        raise AdapterFileError(
            f"{len(names)} label names are saved with {source.adapter}, which has {classes} classes; give them to fit "
            "with --labels a,b,c."
        )
    names = label_names or names
    if kind == "classifier" and classes > 1:
        LabelReader(classes, names)  # refuses names that do not fit before any file is read
    return OpenAdapter(to_device(model, device), tokenizer, names, classes, kind, progress)


def model_kind(model: nn.Module) -> ModelKind:
    """Say what kind a loaded model is of.

    Args:
        model: The PEFT model.

    Returns:
        Its kind.
    """
    if is_multiple_choice(model):
        return "multiple_choice"
    return "classifier" if is_classifier(model) else "language_model"


def default_max_length(model: nn.Module, tokenizer: Any) -> int | None:
    """Return the longest input that both model and tokenizer take, in tokens, or None without a limit.

    Args:
        model: The model.
        tokenizer: Its tokenizer.

    Returns:
        A number of tokens, special ones included.
    """
    limits = (tokenizer.model_max_length, _positions(model))
    said = [int(limit) for limit in limits if isinstance(limit, int | float) and 1 < limit < _NO_LIMIT]
    return min(said, default=None)


def checked_max_length(wanted: int | None, model: nn.Module, tokenizer: Any) -> int | None:
    """Return a maximum length that the model takes.

    Args:
        wanted: What was given or saved; the default if None.
        model: The model.
        tokenizer: Its tokenizer.

    Returns:
        A number of tokens, special ones included; None without a limit.

    Raises:
        UnsupportedInputError: The model has fewer positions.
    """
    if wanted is None:
        return default_max_length(model, tokenizer)
    positions = _positions(model)
    if positions is not None and wanted > positions:
        raise UnsupportedInputError(
            f"inputs of up to {wanted} tokens are wanted, and the model has {positions} positions; give --max-length "
            f"{positions} or less."
        )
    return wanted


def make_encoder(model: nn.Module, tokenizer: Any, form: InputFormat, layout: Layout) -> Encoder:
    """Return what makes batches of texts.

    Args:
        model: The model that the batches are for.
        tokenizer: Its tokenizer.
        form: A complete format.
        layout: What a row's texts are to each other.

    Returns:
        The encoder.
    """
    embedded: Any = getattr(model, "get_input_embeddings")()  # noqa: B009 - nn.Module is typed, PEFT is not
    size, side = embedded.weight.shape[0], form.padding_side or "right"
    return Encoder(tokenizer, form.max_length, side, size, layout, continues=is_causal(model), chat=form.chat)


def _positions(model: nn.Module) -> int | None:
    """Return the number of positions of a model, or None if it says none."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 1:
        return None
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from behind that of the padding token.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return min(positions, module.num_embeddings - module.padding_idx - 1)
    return positions


def default_padding_side(model: nn.Module, tokenizer: Any) -> str:
    """Return the side to pad on: right for encoders, which pool the first token, else as the tokenizer has it.

    Args:
        model: The model.
        tokenizer: Its tokenizer.

    Returns:
        ``left`` or ``right``.
    """
    return str(tokenizer.padding_side) if is_causal(model) else "right"


def chosen_device(name: str) -> torch.device:
    """Find the device that is meant.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``; or ``auto``, a GPU if there is one.

    Returns:
        The device.

    Raises:
        UnsupportedInputError: It cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UnsupportedInputError(
            f"device {name!r} cannot be used ({first_line(error)}); give --device cpu."
        ) from None
    return device
