"""``laplace-lora train``: a LoRA adapter from a base model and a labelled file."""

import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoTokenizer, set_seed

from laplace_lora.adapters import ModelKind, adapter_state_dict
from laplace_lora.commands.base_model import BaseModel
from laplace_lora.commands.console import Console
from laplace_lora.commands.inputs import (
    checked_max_length,
    chosen_device,
    make_encoder,
    require_readable,
    say_sources,
    warn_of_cuts,
)
from laplace_lora.commands.output import check_writable, whole_files
from laplace_lora.commands.plan import Plan
from laplace_lora.commands.readout_choice import (
    Answered,
    ReadoutWish,
    is_text_to_learn,
    label_reader,
    read_training_data,
    readout_name,
    refuse_prompts,
    refuse_unused,
)
from laplace_lora.commands.same_task import require_same_classes, warn_of_shared_rows
from laplace_lora.commands.settings import plain
from laplace_lora.data import DataFile, Encoder, LabelReader, RowSource, Source, open_rows, provenance, scan
from laplace_lora.data.collation import collate
from laplace_lora.errors import DataFileError, LaplaceLoRAError, OutputError
from laplace_lora.loading import set_padding
from laplace_lora.persistence import STARTING_POINT_NAME, TRAINING_NAME, InputFormat
from laplace_lora.presets import Preset
from laplace_lora.readouts import is_causal
from laplace_lora.training import TrainingSettings, add_adapter, fine_tune, has_new_head, require_training


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of ``train``.

    Attributes:
        model: Folder or hub id of the base model.
        data: Labelled training data.
        out: Folder for the adapter; must be empty or missing.
        validation: Held-out data, labelled, to stop early by.
        label_names: Names of the classes in the order of the logits; needed where labels are names.
        template: Jinja template of an input over a row's fields; by the file's shape if None.
        max_length: Most tokens per input; the model's limit if None.
        revision: Revision of the base on the hub.
        training: Settings of adapter and optimizer.
        readout: How answers are read from the model, which is what is trained.
        quantization: How to quantise the base as it is loaded; None for not at all.
        preset: The published set-up that the settings are from, or None.
        padding_side: ``left`` or ``right``; ``right`` if None. A language model's predictions are the same either way,
            position embeddings included; encoders pool their first token.
        chat: Whether prompts stand in the tokenizer's chat template.
        device: ``cpu`` leaves a GPU alone; training is on the first GPU otherwise, if there is one.
    """

    model: str
    data: Source
    out: Path
    validation: Source | None = None
    label_names: tuple[str, ...] | None = None
    template: str | None = None
    max_length: int | None = None
    revision: str | None = None
    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)
    readout: ReadoutWish = dataclasses.field(default_factory=ReadoutWish)
    quantization: str | None = None
    preset: Preset | None = None
    padding_side: str | None = None
    chat: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what is neither side.

        Raises:
            LaplaceLoRAError: It is not.
        """
        if self.padding_side not in (None, "left", "right"):
            raise LaplaceLoRAError(f"padding side {self.padding_side!r} is neither left nor right; choose one.")

    @property
    def base(self) -> BaseModel:
        """The base model."""
        return BaseModel(self.model, self.revision, self.quantization)


def train(config: TrainConfig, console: Console) -> peft.PeftModel:
    """Train an adapter and save it with its tokenizer, its settings and its checkpoints.

    Args:
        config: Settings.
        console: Takes messages.

    Returns:
        The trained model.
    """
    _check_output(config)
    ready = _prepare(config, console)
    start = {key: value.cpu().clone() for key, value in adapter_state_dict(ready.model, "default").items()}
    with whole_files(config.out) as folder:
        with _bar_ended(console):
            fine_tune(
                ready.model,
                ready.tokenizer,
                ready.rows,
                ready.held_out,
                config.training,
                readout=ready.settled.readout,
                collator=partial(collate, padding=ready.tokenizer.pad_token_id, side=ready.tokenizer.padding_side),
                checkpoints=folder / "checkpoints",
                progress=console.progress,
                on_cpu=chosen_device(config.device).type == "cpu",
            )
        _refuse_diverged(ready.model)
        document = {
            "library_version": importlib.metadata.version("laplace-lora"),
            "input_format": dataclasses.asdict(ready.form),
            "readout": {"name": ready.settled.readout.name, "settings": ready.settled.readout.settings()},
            "data": provenance(config.data),
            "validation": None if config.validation is None else provenance(config.validation),
            "settings": plain(config),
        }
        # PEFT would write the frozen output embeddings beside an adapter on them.
        ready.model.save_pretrained(str(folder), save_embedding_layers=False)
        # Every checkpoint is an adapter that fit can take by itself.
        for place in (folder, *(folder / "checkpoints").iterdir()):
            ready.tokenizer.save_pretrained(place)
            save_file(start, place / STARTING_POINT_NAME, metadata={"format": "pt"})
            (place / TRAINING_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.say("saved", f"adapter saved in {config.out}", out=str(config.out))
    return ready.model


def dry_run(config: TrainConfig, console: Console) -> str:
    """Do all of a training run but its steps; nothing is written.

    Args:
        config: Settings.
        console: Takes messages.

    Returns:
        What would be done, in lines for people.
    """
    _check_output(config)
    ready = _prepare(config, console)
    return Plan(
        config.model,
        ready.model,
        ready.tokenizer,
        config.training,
        config.preset,
        None if config.quantization == "none" else config.quantization,
        ready.data,
        ready.validation,
        ready.settled,
        ready.form,
        [int(row["attention_mask"].sum(dim=-1).max()) for row in ready.rows],
        ready.truncated,
    ).text()


def _check_output(config: TrainConfig) -> None:
    require_training()
    require_readable(config.data, config.validation)
    check_writable(config.out)
    if config.out.exists() and any(config.out.iterdir()):
        raise OutputError(f"{config.out} is not empty; give a new folder with --out.")


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A model with a fresh adapter, and its data as tokens."""

    model: peft.PeftModel
    tokenizer: Any
    data: DataFile
    validation: DataFile | None
    settled: Answered
    form: InputFormat
    rows: list[dict[str, torch.Tensor]]
    held_out: list[dict[str, torch.Tensor]] | None
    truncated: int


def _prepare(config: TrainConfig, console: Console) -> _Ready:
    tokenizer = config.base.load(AutoTokenizer)
    kind = _kind(config)
    data, validation, settled = _scan(config, kind, tokenizer, console.progress)
    set_seed(config.training.seed)
    base, fresh = config.base.with_head(kind, settled)
    model = add_adapter(
        base, config.training, fresh, {"classifier": "SEQ_CLS", "language_model": "CAUSAL_LM"}.get(kind)
    )
    settled.readout.check_model(model)
    set_padding(model, tokenizer)
    form = InputFormat(
        label_names=settled.names,
        template=data.form.template,
        max_length=checked_max_length(config.max_length, model, tokenizer),
        padding_side=_padding_side(config, model),
        pair_template=data.form.pair_template,
        chat=config.chat,
    )
    _name_base(model, config.model)
    say_sources(console, config.data, config.validation)
    warn_of_shared_rows(console, config.data, config.validation, "they say nothing of when to stop")
    if config.training.head_learning_rate is not None and not has_new_head(model):
        raise LaplaceLoRAError("--head-learning-rate is for a new head, and none is trained here; leave it out.")
    trained, total = model.get_nb_trainable_parameters()
    console.say(
        "plan",
        f"train: {len(data)} examples, {_outputs(settled)}, read by {settled.readout!r}, {_duration(config.training)}; "
        f"{trained:,} of {total:,} weights",
        examples=len(data),
        classes=settled.classes,
        readout=settled.readout.name,
    )
    tokenizer.padding_side = form.padding_side
    encoder = make_encoder(model, tokenizer, form, data.layout)
    rows = _tokenise(data, encoder, console.progress)
    held_out = None if validation is None else _tokenise(validation, encoder, console.progress)
    warn_of_cuts(encoder, console)
    return _Ready(model, tokenizer, data, validation, settled, form, rows, held_out, encoder.truncated)


def _kind(config: TrainConfig) -> ModelKind:
    """Choose the kind of model by the readout and the data, and by whether the base reads from left to right."""
    if config.readout.name in ("answers", "next-token") or (
        config.readout.name is None and config.readout.answers is not None
    ):
        return "language_model"
    if config.readout.name == "options":
        return "language_model" if config.base.causal else "multiple_choice"
    first = next(open_rows(config.data), None)
    if config.readout.name is None and is_text_to_learn(first):
        return "language_model"
    if config.readout.name is not None or first is None or "choices" not in first.fields:
        return "classifier"
    if isinstance(config.data, RowSource):
        # A task is asked as the paper asks it; an encoder scores the choices that a row has of its own.
        return (
            "language_model" if config.base.causal else "classifier" if config.data.label_names else "multiple_choice"
        )
    if config.base.causal:
        raise LaplaceLoRAError(
            "a language model can answer rows with choices by the letters' tokens, by the likelihood of each choice's "
            "text, or by a new classification head; say which: --readout answers, options or class."
        )
    return "classifier"


def _scan(
    config: TrainConfig, kind: ModelKind, tokenizer: Any, progress: bool
) -> tuple[DataFile, DataFile | None, Answered]:
    names = config.label_names
    if names is not None and len(names) < 2:
        raise LaplaceLoRAError("fewer than two label names are given; name every class with --labels a,b,c.")
    name = readout_name(config.readout, kind, None, config.data)
    refuse_unused(name, kind, config.readout, names)
    settled = read_training_data(
        name,
        kind,
        config.readout,
        config.data,
        tokenizer,
        names=names,
        classes=None,
        template=config.template,
        pair_template=None,
        progress=progress,
        chat=config.chat,
    )
    for source in (config.data, config.validation):
        refuse_prompts(source, name, config.template)
    if name == "class_logits":
        settled = _counted(config, settled)
    data, validation = settled.file, None
    if config.validation is not None:
        reader = label_reader(data.layout, name, settled.classes, settled.names)
        require_same_classes(config.validation, data.layout, settled.names)
        validation = scan(config.validation, reader, layout=data.layout, form=data.form, progress=progress)
    return data, validation, settled


def _counted(config: TrainConfig, settled: Answered) -> Answered:
    """Count the classes where no names are given, and refuse classes without rows."""
    data, names = settled.file, settled.names
    labels = data.labels
    assert isinstance(labels, LabelReader)
    known = data.source.classes if isinstance(data.source, RowSource) else None
    if names is None:
        # A task knows its classes, also those that no row at hand is of.
        classes = known or 1 + max(index for index, count in enumerate(data.label_counts) if count)
        labels = LabelReader(classes)
        data = dataclasses.replace(data, labels=labels, label_counts=data.label_counts[:classes])
    absent = [labels.shown_names()[index] for index, count in enumerate(data.label_counts) if not count]
    if labels.classes < 2 or (absent and names is None and known is None):
        raise DataFileError(
            f"{config.data} has no row of class {', '.join(absent[:5]) or '1'}; number the classes from 0 without "
            "gaps, or name all of them with --labels."
        )
    return dataclasses.replace(settled, names=labels.names, classes=labels.classes, file=data)


def _padding_side(config: TrainConfig, model: peft.PeftModel) -> str:
    if is_causal(model):
        return config.padding_side or (config.preset.padding_side if config.preset is not None else "right")
    if config.padding_side == "left":
        raise LaplaceLoRAError("encoders pool the first token and are padded on the right; leave out --padding-side.")
    return "right"


def _duration(settings: TrainingSettings) -> str:
    return f"at most {settings.epochs} epochs" if settings.steps is None else f"{settings.steps:,} steps"


def _outputs(settled: Answered) -> str:
    name = settled.readout.name
    if name in ("class_logits", "answer_tokens"):
        return f"{settled.classes} classes"
    return {
        "option_scores": f"up to {settled.classes} options",
        "scalar": "one real output",
        "pairwise_reward": "pairs",
        "next_token": "completions",
    }[name]


def _name_base(model: peft.PeftModel, name: str) -> None:
    """Write where the base is into adapter_config.json: a folder by its whole path, so that it is found again."""
    if Path(name).is_dir():
        model.peft_config["default"].base_model_name_or_path = str(Path(name).resolve())


def _tokenise(file: DataFile, encoder: Encoder, progress: bool) -> list[dict[str, torch.Tensor]]:
    """Read all rows, one by one: the collator pads them."""
    rows = tqdm(file, desc="tokenise", unit="row", delay=1.0, disable=not progress)
    return [encoder.encode([example], file.name) for example in rows]


@contextmanager
def _bar_ended(console: Console) -> Iterator[None]:
    """End the line of a progress bar that an error leaves behind: the message gets its own."""
    try:
        yield
    except BaseException:
        if console.progress:
            print(file=sys.stderr)
        raise


def _refuse_diverged(model: peft.PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise LaplaceLoRAError(f"the training diverged: {name} holds NaN or infinity; lower --learning-rate.")
