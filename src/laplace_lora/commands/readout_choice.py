"""Which readout a verb uses: as asked for, as saved, or the only one that fits model and data."""

import dataclasses
from typing import Any

from laplace_lora.adapters import ModelKind
from laplace_lora.data import (
    LETTERS,
    DataFile,
    LabelReader,
    Layout,
    NoLabels,
    RealReader,
    Row,
    RowFormat,
    RowSource,
    Source,
    default_answers,
    layout_of,
    open_rows,
    scan,
)
from laplace_lora.data.chat import chat_text, require_chat_template
from laplace_lora.data.scan import Labels, Reader
from laplace_lora.errors import DataFileError, LaplaceLoRAError
from laplace_lora.readouts import READOUTS, AnswerTokens, OptionScores, Readout
from laplace_lora.tasks import TaskSplit

#: What the command line calls readouts.
NAMES = {
    "class": "class_logits",
    "answers": "answer_tokens",
    "options": "option_scores",
    "next-token": "next_token",
    "scalar": "scalar",
    "pairwise": "pairwise_reward",
}
#: Most choices of a row, and most classes that are counted where no names are given.
MOST_CHOICES, MOST_CLASSES = len(LETTERS), 10_000


def short_name(name: str) -> str:
    """Return what the command line calls a readout.

    Args:
        name: Its name as it is saved.

    Returns:
        One of ``NAMES``.

    Raises:
        KeyError: There is no such readout.
    """
    return {long: short for short, long in NAMES.items()}[name]


@dataclasses.dataclass(frozen=True)
class ReadoutWish:
    """What is asked of a readout.

    Attributes:
        name: One of ``NAMES``; None to infer it.
        answers: Words of ``answers``; by the prompt if None.
        normalise: What ``options`` divides log-likelihoods by: ``none`` (if None), ``tokens`` or ``characters``.
        saved: What was saved with the adapter, where nothing else is asked for.
    """

    name: str | None = None
    answers: tuple[str, ...] | None = None
    normalise: str | None = None
    saved: Readout | None = None

    def __post_init__(self) -> None:
        """Refuse what is not known.

        Raises:
            LaplaceLoRAError: A name is none of those known.
        """
        if self.name is not None and self.name not in NAMES:
            raise LaplaceLoRAError(f"readout {self.name!r} is not known; choose one of {', '.join(NAMES)}.")


def refuse_unused(name: str, kind: ModelKind, wish: ReadoutWish, labels: tuple[str, ...] | None) -> None:
    """Refuse options that a readout has no use for.

    Args:
        name: The readout's name as it is saved.
        kind: Kind of model.
        wish: What is asked for.
        labels: Label names that were given, or None.

    Raises:
        LaplaceLoRAError: One of them would be left out.
    """
    scored_by_text = name == "option_scores" and kind == "language_model"
    for option, given, used in (
        ("--answers", wish.answers, name == "answer_tokens"),
        ("--normalise", wish.normalise, scored_by_text),
        ("--labels", labels, name in ("class_logits", "answer_tokens")),
    ):
        if given is not None and not used:
            raise LaplaceLoRAError(
                f"{option} has no use where outputs are read by {short_name(name)} ({kind}); leave it out."
            )


def refuse_prompts(source: Source | None, name: str, template: str | None) -> None:
    """Refuse ``--prompts`` where nothing is asked by them.

    Args:
        source: Rows, perhaps a task's.
        name: The readout's name as it is saved.
        template: A template that was given, or saved with the adapter, or None.

    Raises:
        LaplaceLoRAError: They would be left out.
    """
    if not isinstance(source, TaskSplit) or source.prompts is None:
        return
    if name != "answer_tokens":
        raise LaplaceLoRAError(f"--prompts has no use where outputs are read by {short_name(name)}; leave it out.")
    if template is not None and template != getattr(source.form("answers"), "template", None):
        raise LaplaceLoRAError(
            "--prompts has no use beside a template that was given or saved with the adapter; leave one of them out."
        )


def readout_name(wish: ReadoutWish, kind: ModelKind, outputs: int | None, data: Source) -> str:
    """Choose a readout by what is asked for, or by model and data where only one fits.

    Args:
        wish: What is asked for.
        kind: Kind of model.
        outputs: Number of a classifier's outputs; None where it is to be counted.
        data: A data file.

    Returns:
        The readout's name as it is saved.

    Raises:
        LaplaceLoRAError: Several fit, or the one asked for does not.
    """
    fitting = {
        "classifier": ("class_logits", "scalar", "pairwise_reward"),
        "language_model": ("answer_tokens", "option_scores", "next_token"),
        "multiple_choice": ("option_scores",),
    }[kind]
    if wish.name is not None:
        if NAMES[wish.name] not in fitting:
            asked = ", ".join(name for name, saved in NAMES.items() if saved in fitting)
            raise LaplaceLoRAError(f"readout {wish.name} does not fit this adapter's model ({kind}); choose {asked}.")
        return NAMES[wish.name]
    if len(fitting) == 1:
        return fitting[0]
    first = next(open_rows(data), None)
    fields = set() if first is None else set(first.fields)
    if kind == "classifier":
        if {"chosen", "rejected"} <= fields:
            return "pairwise_reward"
        return "scalar" if outputs == 1 else "class_logits"
    if is_text_to_learn(first):
        return "next_token"
    if "choices" in fields and wish.answers is None and not isinstance(data, RowSource):
        raise LaplaceLoRAError(
            "a language model can answer rows with choices by the letters' tokens or by the likelihood of each "
            "choice's text; say which with --readout answers or --readout options."
        )
    return "answer_tokens"


def is_text_to_learn(row: Row | None) -> bool:
    """Say whether a row is a text that continues another, and nothing else.

    Args:
        row: The first row; None of an empty file.

    Returns:
        Whether it is.
    """
    fields = set() if row is None else set(row.fields)
    return {"prompt", "completion"} <= fields or {"instruction", "output"} <= fields


def label_reader(layout: Layout, readout: str, classes: int | None, names: tuple[str, ...] | None) -> Reader:
    """Return what reads a file's labels.

    Args:
        layout: Of the readout.
        readout: Its name.
        classes: Number of classes; None where it is to be counted.
        names: Names of the classes, or None. Choices are also named by their letters.

    Returns:
        The reader.
    """
    if layout.labels == "real":
        return RealReader()
    if layout.labels == "none":
        return NoLabels()
    if readout == "option_scores":
        return LabelReader(MOST_CHOICES, tuple(LETTERS))
    if readout == "answer_tokens" and classes is None and names is None:
        return LabelReader(MOST_CHOICES, tuple(LETTERS))
    return LabelReader(classes or (len(names) if names is not None else MOST_CLASSES), names)


def given_form(layout: Layout, template: str | None, pair_template: str | None, data: Source) -> RowFormat | None:
    """Return the templates that were given or saved.

    Args:
        layout: Of the readout.
        template: Of the text; None for that of the file's shape.
        pair_template: Of the second text; that of the file's shape where it needs one and none was given.
        data: The file.

    Returns:
        The form, or None.

    Raises:
        LaplaceLoRAError: Pairs have no template of their own.
    """
    if template is None:
        return None
    if pair_template is None and layout.parts == "pair":
        raise LaplaceLoRAError(
            "pairs are read from the fields chosen and rejected, with or without a prompt; leave out --template."
        )
    if pair_template is None and layout.parts != "single":
        row, own = next(open_rows(data), None), data.form(layout.style) if isinstance(data, RowSource) else None
        pair_template = own.pair_template if own else None if row is None else layout.pair_template(row)
    return RowFormat(template, pair_template)


@dataclasses.dataclass(frozen=True)
class Answered:
    """A readout settled with the data that it is for.

    Attributes:
        readout: The readout.
        names: Names of the classes, or None.
        classes: K; of options, of the row that has most.
        file: The data, with labels of that many classes.
    """

    readout: Readout
    names: tuple[str, ...] | None
    classes: int
    file: DataFile

    def shown_answers(self, tokenizer: Any) -> str | None:
        """Say by which tokens a prompt is answered.

        Args:
            tokenizer: The model's tokenizer.

        Returns:
            One line, name by name; None of other readouts.
        """
        if not isinstance(self.readout, AnswerTokens):
            return None
        ids = self.readout.token_ids
        names = self.names or tuple(map(str, range(len(ids))))
        named = zip(names, ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True)
        return ", ".join(f"{name} = {number} {token!r}" for name, number, token in named)


def settle(
    name: str, wish: ReadoutWish, file: DataFile, tokenizer: Any, names: tuple[str, ...] | None, chat: bool = False
) -> Answered:
    """Make the readout for a data file that has been scanned.

    Args:
        name: The readout's name.
        wish: What is asked for.
        file: The training data.
        tokenizer: The model's tokenizer.
        names: Names of the classes, or None.
        chat: Whether prompts stand in the tokenizer's chat template.

    Returns:
        Readout, classes and data.

    Raises:
        DataFileError: There are no words to answer by, or too few.
    """
    if name == "option_scores":
        most = file.most_choices
        # OptionScores refuses what it does not know.
        readout: Readout = wish.saved or OptionScores(wish.normalise or "none")  # type: ignore[arg-type]
        return Answered(readout, None, most, _recounted(file, LabelReader(most, tuple(LETTERS[:most]))))
    if name != "answer_tokens":
        classes = file.labels.classes if file.labels is not None and name != "next_token" else 1
        return Answered(READOUTS[name](), names if name == "class_logits" else None, classes, file)
    if isinstance(wish.saved, AnswerTokens):
        count = len(wish.saved.token_ids)
        known = names if names is not None and len(names) == count else None
        return Answered(wish.saved, known, count, _recounted(file, LabelReader(count, known)))
    row = next(open_rows(file.source, file.name))
    asked = file.source.answers() if isinstance(file.source, RowSource) else None
    words = wish.answers or asked or default_answers(file.form, row, names, file.most_choices)
    if words is None:
        raise DataFileError(
            f"the words that answer {file.name} are not known; give them in the order of the labels: --answers yes,no."
        )
    reader = LabelReader(len(words), names if names is not None and len(names) == len(words) else words)
    prompt = next(iter(file)).text
    prompt = chat_text(tokenizer, prompt) if chat else prompt
    return Answered(AnswerTokens.of_words(tokenizer, words, prompt), reader.names, len(words), _recounted(file, reader))


def read_training_data(
    name: str,
    kind: ModelKind,
    wish: ReadoutWish,
    data: Source,
    tokenizer: Any,
    *,
    names: tuple[str, ...] | None,
    classes: int | None,
    template: str | None,
    pair_template: str | None,
    progress: bool,
    chat: bool = False,
) -> Answered:
    """Check the training data, and settle the readout by them.

    Args:
        name: The readout's name.
        kind: Kind of model.
        wish: What is asked for.
        data: The file.
        tokenizer: The model's tokenizer.
        names: Names of the classes, or None.
        classes: Number of classes; None where it is to be counted.
        template: Of the text; None for that of the file's shape.
        pair_template: Of the second text; None for that of the file's shape.
        progress: Whether long files show a progress bar.
        chat: Whether prompts stand in the tokenizer's chat template.

    Returns:
        Readout, classes and data.

    Raises:
        LaplaceLoRAError: A chat template is wanted where rows are no prompts, or label names do not fit the task.
    """
    layout = readout_layout(name, kind)
    if chat:
        require_chat_template(tokenizer)
        if layout.parts == "pair" or layout.style == "encoder-options":
            raise LaplaceLoRAError("--chat is for one prompt per row, not for pairs of texts; leave it out.")
    if names is not None and isinstance(data, RowSource) and data.classes not in (None, len(names)):
        raise LaplaceLoRAError(
            f"{len(names)} names are given by --labels, and {data} has {data.classes} classes; name each of them."
        )
    if names is None and name == "class_logits" and isinstance(data, RowSource):
        names = data.label_names
    known = names if names is not None or name != "answer_tokens" else wish.answers
    file = scan(
        data,
        label_reader(layout, name, classes, known),
        layout=layout,
        form=given_form(layout, template, pair_template, data),
        pairs=tokenizer.sep_token is not None,
        progress=progress,
        # A chat template has an end of its own.
        eos_token="" if chat else tokenizer.eos_token,
    )
    if chat and layout.parts == "single" and file.form.pair_template is not None:
        raise LaplaceLoRAError("--chat is for one prompt per row, not for pairs of texts; leave it out.")
    return settle(name, wish, file, tokenizer, names, chat)


def _recounted(file: DataFile, reader: LabelReader) -> DataFile:
    """Read labels again by the classes that are known now."""
    labels: Labels = "required" if file.labelled else "ignored"
    return scan(file.source, reader, layout=file.layout, form=file.form, labels=labels, name=file.name)


def readout_layout(name: str, kind: ModelKind) -> Layout:
    """Return how rows become inputs of a readout.

    Args:
        name: The readout's name.
        kind: Kind of model.

    Returns:
        The layout.
    """
    return layout_of(name, name == "option_scores" and kind == "multiple_choice")
