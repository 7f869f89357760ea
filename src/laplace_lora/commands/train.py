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
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, set_seed

from laplace_lora.adapters import FACTORIES, ModelKind, empty_model, unfilled_keys
from laplace_lora.adapters.quantised import kept_modules, quantization_config
from laplace_lora.commands.console import Console
from laplace_lora.commands.inputs import checked_max_length, make_encoder, require_readable, warn_of_cuts
from laplace_lora.commands.output import check_writable, whole_files
from laplace_lora.commands.readout_choice import (
    Answered,
    ReadoutWish,
    is_text_to_learn,
    label_reader,
    read_training_data,
    readout_name,
    refuse_unused,
)
from laplace_lora.commands.settings import plain
from laplace_lora.data import DataFile, Encoder, LabelReader, open_rows, scan
from laplace_lora.data.collation import collate
from laplace_lora.errors import AdapterFileError, DataFileError, LaplaceLoRAError, OutputError, first_line
from laplace_lora.loading import set_padding
from laplace_lora.persistence import TRAINING_NAME, InputFormat
from laplace_lora.quiet import quiet_transformers
from laplace_lora.readouts import is_causal_type
from laplace_lora.training import TrainingSettings, add_adapter, fine_tune, require_training


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
    readout: ReadoutWish = dataclasses.field(default_factory=ReadoutWish)
    quantization: str | None = None


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
    require_readable(config.data, config.validation)
    check_writable(config.out)
    if config.out.exists() and any(config.out.iterdir()):
        raise OutputError(f"{config.out} is not empty; give a new folder with --out.")
    tokenizer = _load(AutoTokenizer, config)
    kind = _kind(config)
    data, validation, settled = _scan(config, kind, tokenizer, console.progress)
    set_seed(config.training.seed)
    base, fresh = _load_base(config, kind, settled)
    model = add_adapter(
        base, config.training, fresh, {"classifier": "SEQ_CLS", "language_model": "CAUSAL_LM"}.get(kind)
    )
    settled.readout.check_model(model)
    set_padding(model, tokenizer)
    form = InputFormat(
        label_names=settled.names,
        template=data.form.template,
        max_length=checked_max_length(config.max_length, model, tokenizer),
        padding_side="right",  # exact for encoders and causal models alike, position embeddings included
        pair_template=data.form.pair_template,
    )
    _name_base(model, config.model)
    trained, total = model.get_nb_trainable_parameters()
    console.say(
        "plan",
        f"train: {len(data)} examples, {_outputs(settled)}, read by {settled.readout!r}, at most "
        f"{config.training.epochs} epochs; {trained:,} of {total:,} weights",
        examples=len(data),
        classes=settled.classes,
        readout=settled.readout.name,
    )
    tokenizer.padding_side = form.padding_side
    encoder = make_encoder(model, tokenizer, form, data.layout)
    rows = _tokenise(data, encoder, console.progress)
    held_out = None if validation is None else _tokenise(validation, encoder, console.progress)
    warn_of_cuts(encoder, console)
    with whole_files(config.out) as folder:
        with _bar_ended(console):
            fine_tune(
                model,
                tokenizer,
                rows,
                held_out,
                config.training,
                readout=settled.readout,
                collator=partial(collate, padding=tokenizer.pad_token_id),
                checkpoints=folder / "checkpoints",
                progress=console.progress,
            )
        _refuse_diverged(model)
        document = {
            "library_version": importlib.metadata.version("laplace-lora"),
            "input_format": dataclasses.asdict(form),
            "readout": {"name": settled.readout.name, "settings": settled.readout.settings()},
            "settings": plain(config),
        }
        # PEFT would write the frozen output embeddings beside an adapter on them.
        model.save_pretrained(str(folder), save_embedding_layers=False)
        # Every checkpoint is an adapter that fit can take by itself.
        for place in (folder, *(folder / "checkpoints").iterdir()):
            tokenizer.save_pretrained(place)
            (place / TRAINING_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.say("saved", f"adapter saved in {config.out}", out=str(config.out))
    return model


def _kind(config: TrainConfig) -> ModelKind:
    """Choose the kind of model by the readout and the data, and by whether the base reads from left to right."""
    if config.readout.name in ("answers", "next-token") or (
        config.readout.name is None and config.readout.answers is not None
    ):
        return "language_model"
    if config.readout.name == "options":
        causal = is_causal_type(_load(AutoConfig, config).model_type)
        return "language_model" if causal else "multiple_choice"
    first = next(open_rows(config.data), None)
    if config.readout.name is None and is_text_to_learn(first):
        return "language_model"
    choices = config.readout.name is None and first is not None and "choices" in first.fields
    if choices and is_causal_type(_load(AutoConfig, config).model_type):
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
    )
    if name == "class_logits":
        settled = _counted(config, settled)
    data, validation = settled.file, None
    if config.validation is not None:
        reader = label_reader(data.layout, name, settled.classes, settled.names)
        validation = scan(config.validation, reader, layout=data.layout, form=data.form, progress=progress)
    return data, validation, settled


def _counted(config: TrainConfig, settled: Answered) -> Answered:
    """Count the classes where no names are given, and refuse classes without rows."""
    data, names = settled.file, config.label_names
    labels = data.labels
    assert isinstance(labels, LabelReader)
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
    return dataclasses.replace(settled, names=labels.names, classes=labels.classes, file=data)


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


def _load_base(config: TrainConfig, kind: ModelKind, settled: Answered) -> tuple[Any, list[str]]:
    """Load the base with a new head; return it, and the other layers that the checkpoint has no weights for."""
    options: dict[str, Any] = {}
    outputs = 1 if settled.readout.name in ("scalar", "pairwise_reward") else settled.classes
    if kind == "classifier":
        options["num_labels"] = outputs
    if config.quantization not in (None, "none"):
        settings = _load(AutoConfig, config)
        kept = kept_modules(empty_model(settings, kind, outputs), ())
        options["quantization_config"] = quantization_config(config.quantization, torch.float32, settings, kept)
    with quiet_transformers():
        base, found = _load(
            FACTORIES[kind],
            config,
            dtype=torch.float32,  # AdamW's steps are lost in the rounding of anything shorter
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    if kind == "classifier" and outputs > 1:
        # The names of the base's own classes, if it has some, are not this task's.
        base.config.id2label = dict(enumerate(settled.names or (f"LABEL_{index}" for index in range(outputs))))
        base.config.label2id = {name: index for index, name in base.config.id2label.items()}
    layers = {key.rpartition(".")[0] for key in unfilled_keys(found)}
    # PEFT trains and saves a classifier's two by itself.
    own = ("classifier", "score") if kind == "classifier" else ()
    fresh = sorted(name for name in layers if name.partition(".")[0] not in own)
    wrong = [name for name in fresh if type(base.get_submodule(name)) is not torch.nn.Linear]
    if wrong:
        raise AdapterFileError(
            f"the base model {config.model} has no weights for {', '.join(wrong[:3])}, which cannot be trained beside "
            "an adapter; give --model a pretrained model."
        )
    if kind == "multiple_choice" and "classifier" not in fresh and hasattr(base, "classifier"):
        fresh.append("classifier")  # a head that was trained on another task
    return base, fresh


def _load(factory: Any, config: TrainConfig, **options: Any) -> Any:
    try:
        return factory.from_pretrained(config.model, revision=config.revision, trust_remote_code=False, **options)
    except Exception as error:  # transformers raises whatever it pleases
        raise AdapterFileError(
            f"the base model {config.model} cannot be loaded ({first_line(error)}); give --model a folder or a hub id "
            "of a transformers model."
        ) from error


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
