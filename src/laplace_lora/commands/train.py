"""``laplace-lora train``: a LoRA adapter from a base model and a labelled file."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import peft
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from laplace_lora.commands.console import Console
from laplace_lora.commands.inputs import default_max_length, default_padding_side
from laplace_lora.commands.output import check_writable, whole_files
from laplace_lora.commands.settings import plain
from laplace_lora.data import DataFile, LabelReader, RowFormat, open_rows, scan
from laplace_lora.errors import AdapterFileError, DataFileError, LaplaceLoRAError, OutputError
from laplace_lora.loading import set_padding
from laplace_lora.persistence import TRAINING_NAME, InputFormat
from laplace_lora.quiet import quiet_transformers
from laplace_lora.training import TrainingSettings, add_adapter, fine_tune, require_training

#: Most classes that are counted where no names are given.
MOST_CLASSES = 10_000


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
    """

    model: str
    data: Path
    out: Path
    validation: Path | None = None
    label_names: tuple[str, ...] | None = None
    template: str | None = None
    max_length: int | None = None
    revision: str | None = None
    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)


def train(config: TrainConfig, console: Console) -> peft.PeftModel:
    """Train an adapter and save it with its tokenizer, its settings and a checkpoint per epoch.

    Args:
        config: Settings.
        console: Takes messages.

    Returns:
        The trained model.

    Raises:
        OutputError: The folder is not empty.
    """
    require_training()
    for path in filter(None, (config.data, config.validation)):
        next(open_rows(path), None)
    if config.out.exists() and any(config.out.iterdir()):
        raise OutputError(f"{config.out} is not empty; give a new folder with --out.")
    check_writable(config.out)
    tokenizer = _load(AutoTokenizer, config)
    data, validation, labels = _scan(config, tokenizer)
    set_seed(config.training.seed)
    with quiet_transformers():
        base = _load(AutoModelForSequenceClassification, config, num_labels=labels.classes, dtype="auto")
    if labels.names is not None:
        base.config.id2label = dict(enumerate(labels.names))
        base.config.label2id = {name: index for index, name in enumerate(labels.names)}
    model = add_adapter(base, config.training)
    set_padding(model, tokenizer)
    form = InputFormat(
        label_names=labels.names,
        template=data.form.template,
        max_length=config.max_length or default_max_length(model, tokenizer),
        padding_side=default_padding_side(model, tokenizer),
        pair_template=data.form.pair_template,
    )
    _name_base(model, config.model)
    trained, total = model.get_nb_trainable_parameters()
    console.say(
        "plan",
        f"train: {len(data)} examples, {labels.classes} classes, at most {config.training.epochs} epochs; "
        f"{trained:,} of {total:,} weights",
        examples=len(data),
        classes=labels.classes,
    )
    held_out = None if validation is None else _tokenise(validation, tokenizer, form)
    with whole_files(config.out) as folder:
        fine_tune(
            model,
            tokenizer,
            _tokenise(data, tokenizer, form),
            held_out,
            config.training,
            checkpoints=folder / "checkpoints",
            progress=console.progress,
        )
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(folder)
        document = {
            "library_version": importlib.metadata.version("laplace-lora"),
            "input_format": dataclasses.asdict(form),
            "settings": plain(config),
        }
        (folder / TRAINING_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.say("saved", f"adapter saved in {config.out}", out=str(config.out))
    return model


def _scan(config: TrainConfig, tokenizer: Any) -> tuple[DataFile, DataFile | None, LabelReader]:
    form = None if config.template is None else RowFormat(config.template)
    pairs = tokenizer.sep_token is not None
    names = config.label_names
    labels = LabelReader(MOST_CLASSES if names is None else len(names), names)
    data = scan(config.data, labels, form=form, pairs=pairs)
    if names is None:
        classes = 1 + max(index for index, count in enumerate(data.label_counts) if count)
        labels = LabelReader(classes)
        data = dataclasses.replace(data, labels=labels, label_counts=data.label_counts[:classes])
    absent = [labels.shown_names()[index] for index, count in enumerate(data.label_counts) if not count]
    if labels.classes < 2 or (absent and names is None):
        raise DataFileError(
            f"{config.data} has no row of class {', '.join(absent[:5]) or '1'}; number the classes from 0 without "
            "gaps, or name all of them with --labels."
        )
    validation = None
    if config.validation is not None:
        validation = scan(config.validation, labels, form=data.form, pairs=pairs)
    return data, validation, labels


def _load(factory: Any, config: TrainConfig, **options: Any) -> Any:
    try:
        return factory.from_pretrained(config.model, revision=config.revision, **options)
    except Exception as error:  # transformers raises whatever it pleases
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(".:")
        raise AdapterFileError(
            f"the base model {config.model} cannot be loaded ({reason}); give --model a folder or a hub id of a "
            "transformers model."
        ) from error


def _name_base(model: peft.PeftModel, name: str) -> None:
    """Write where the base is into adapter_config.json: a folder by its whole path, so that it is found again."""
    if Path(name).is_dir():
        model.peft_config["default"].base_model_name_or_path = str(Path(name).resolve())


def _tokenise(file: DataFile, tokenizer: Any, form: InputFormat) -> list[dict[str, Any]]:
    rows = []
    for example in file:
        encoded = tokenizer(
            example.text, example.pair, truncation=form.max_length is not None, max_length=form.max_length
        )
        if not encoded["input_ids"]:
            raise DataFileError(f"{file.name}:{example.line} has no tokens in this vocabulary; remove the row.")
        rows.append({**encoded, "labels": example.label})
    if not rows:
        raise LaplaceLoRAError(f"{file.name} has no rows; give a file with at least one example.")
    return rows
