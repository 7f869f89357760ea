"""``laplace-lora tasks``: what is known of tasks, and examples as a model sees them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from transformers import AutoTokenizer

from laplace_lora.adapters import ModelKind
from laplace_lora.commands.readout_choice import (
    Answered,
    ReadoutWish,
    read_training_data,
    readout_layout,
    refuse_prompts,
    refuse_unused,
    short_name,
)
from laplace_lora.data import Encoder, RowFormat, Source
from laplace_lora.data.scan import Example
from laplace_lora.errors import DataFileError, LaplaceLoRAError, first_line
from laplace_lora.tasks import TASKS, Task, TaskSplit

_READOUTS = ("answers", "options", "class")


@dataclasses.dataclass(frozen=True)
class ShowConfig:
    """Settings of ``tasks show``.

    Attributes:
        source: A split of a task.
        tokenizer: Folder or hub id of a tokenizer; None for texts alone.
        readout: ``answers``, ``options`` or ``class``; by the tokenizer and the task if None.
        answers: Words that answer, in the place of the task's own.
        template: Jinja template in the place of the task's own.
        chat: Whether prompts stand in the tokenizer's chat template.
        max_length: Most tokens per input.
        rows: Number of examples.
    """

    source: Source
    tokenizer: str | None = None
    readout: str | None = None
    answers: tuple[str, ...] | None = None
    template: str | None = None
    chat: bool = False
    max_length: int | None = None
    rows: int = 2


def show_task(config: ShowConfig) -> str:
    """Show a task and examples of it.

    Args:
        config: Settings.

    Returns:
        Lines for people.

    Raises:
        LaplaceLoRAError: It is no task, or an option does not fit.
    """
    if not isinstance(config.source, TaskSplit):
        raise LaplaceLoRAError(f"{config.source} is a file; name a task: {', '.join(TASKS)}.")
    if config.readout is not None and config.readout not in _READOUTS:
        raise LaplaceLoRAError(f"readout {config.readout!r} is not one of {', '.join(_READOUTS)}; choose one.")
    unused = {"--readout": config.readout, "--answers": config.answers, "--max-length": config.max_length}
    given = [option for option, value in unused.items() if value is not None]
    if config.tokenizer is None and given:
        raise LaplaceLoRAError(f"{given[0]} needs a tokenizer; give --tokenizer DIR, or leave it out.")
    about = [*_about(config.source.task)]
    try:
        about.append(f"  shown: {config.source.shown}")
    except DataFileError as error:
        return "\n".join([*about, "", f"no examples: {error}"])
    return "\n".join([*about, "", *_examples(config, config.source)])


def _about(task: Task) -> Iterator[str]:
    yield f"{task.name}: {task.title}"
    yield f"  hub: {task.hub.repository}, {', '.join(task.hub.configurations)}, revision {task.hub.revision}"
    known = [f"{split} {count:,}" for split, count in task.sizes.items()]
    hidden = f"; labels of {', '.join(sorted(task.hidden))} are hidden" if task.hidden else ""
    yield f"  rows: {', '.join(known)}{hidden}; figures are of {task.evaluation}"
    yield f"  licence: {task.hub.licence}"
    classes = task.names or (f"{task.choices} choices of every row's own",)
    yield f"  classes: {', '.join(classes)}"


def _examples(config: ShowConfig, source: TaskSplit) -> Iterator[str]:
    # Of a whole split, the first rows alone are read into tokens.
    few = f"{source.split}[:{config.rows}]"
    part = source if source.part else TaskSplit(source.task, few, source.folder, source.prompts)
    if config.tokenizer is None:
        yield from _texts(config, part)
        return
    tokenizer = _tokenizer(config.tokenizer)
    kind, name = _read_as(config, source, tokenizer)
    wish = ReadoutWish(answers=config.answers)
    refuse_unused(name, kind, wish, None)
    refuse_prompts(source, name, config.template)
    settled = read_training_data(
        name,
        kind,
        wish,
        part,
        tokenizer,
        names=None,
        classes=None,
        template=config.template,
        pair_template=None,
        progress=False,
        chat=config.chat,
    )
    encoder = Encoder(
        tokenizer,
        config.max_length,
        "right",
        layout=readout_layout(name, kind),
        continues=kind == "language_model",
        chat=config.chat,
    )
    yield f"read by {short_name(name)}"
    answers = settled.shown_answers(tokenizer)
    if answers is not None:
        yield f"answer tokens: {answers}"
    for example, _ in zip(settled.file, range(config.rows), strict=False):
        yield ""
        yield from _example(example, settled, source)
        batch = encoder.encode([example._replace(label=None)], settled.file.name)
        for number, ids in enumerate(batch["input_ids"].reshape(-1, batch["input_ids"].shape[-1])):
            real = ids[batch["attention_mask"].reshape(-1, len(ids))[number].bool()].tolist()
            label = f"tokens of choice {number}" if batch["input_ids"].dim() == 3 else "tokens"
            yield f"  {label} ({len(real)}): {' '.join(map(str, real))}"


def _texts(config: ShowConfig, source: TaskSplit) -> Iterator[str]:
    form = source.form("answers") if config.template is None else RowFormat(config.template)
    assert form is not None
    if config.chat:
        raise LaplaceLoRAError("a chat template is a tokenizer's; give --tokenizer with --chat.")
    for row, _ in zip(source.rows(), range(config.rows), strict=False):
        yield f"row {row.line}, label {row.fields['label']}"
        # What closes a prompt is a tokenizer's.
        shown = RowFormat(form.template.replace("{{ eos_token }}", "<end of sequence>"))
        yield from (f"  | {line}" for line in shown.render(row, str(source))[0].splitlines())


def _example(example: Example, settled: Answered, source: TaskSplit) -> Iterator[str]:
    label = None if example.label is None else int(example.label)
    names = settled.names or source.task.names
    shown = "hidden" if label is None else str(label) if names is None else f"{label} ({names[label]})"
    yield f"row {example.line}, label {shown}"
    yield from (f"  | {line}" for line in example.text.splitlines())
    for text in example.choices or (() if example.pair is None else (example.pair,)):
        yield f"  + {text}"


def _read_as(config: ShowConfig, source: TaskSplit, tokenizer: Any) -> tuple[ModelKind, str]:
    causal = tokenizer.sep_token is None  # encoders' tokenizers put something between two texts
    natural = "answers" if causal else "class" if source.task.names else "options"
    wanted = config.readout or natural
    if wanted == "answers":
        return "language_model", "answer_tokens"
    if wanted == "options":
        return ("language_model" if causal else "multiple_choice"), "option_scores"
    return "classifier", "class_logits"


def _tokenizer(name: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # nothing is padded that is shown
        return tokenizer
    except Exception as error:  # transformers raises whatever it pleases
        raise DataFileError(
            f"the tokenizer {name} cannot be loaded ({first_line(error)}); give --tokenizer a folder or a hub id."
        ) from error
