"""The hub's rows made into ours: what is asked, the choices, and a label counted from 0."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from laplace_lora.data import LETTERS
from laplace_lora.tasks.base import Fields

Converter = Callable[[Mapping[str, Any]], Fields]


def lettered(question: str) -> Converter:
    """Convert rows whose choices carry letters or numbers of their own (ARC, OpenBookQA, CommonsenseQA).

    Args:
        question: Name of the column with the question.

    Returns:
        The converter; labels 1 to 5 count as A to E.
    """

    def convert(row: Mapping[str, Any]) -> Fields:
        choices = row["choices"]
        if not isinstance(choices, Mapping):  # as some tools write a sequence of structures
            choices = {key: [choice[key] for choice in choices] for key in ("text", "label")}
        marks, answer = [_letter(mark) for mark in choices["label"]], _letter(row["answerKey"])
        label = marks.index(answer) if answer in marks else None
        if label is None and answer:
            raise ValueError(f"the answer {answer!r} is none of the choices {', '.join(marks)}")
        return {"question": row[question], "choices": list(choices["text"]), "label": label}

    return convert


def winogrande(row: Mapping[str, Any]) -> Fields:
    """Convert a row of WinoGrande.

    Args:
        row: With ``sentence``, ``option1``, ``option2`` and ``answer``: 1, 2, or nothing.

    Returns:
        One of ours.

    Raises:
        ValueError: The answer is another one.
    """
    known = {"1": 0, "2": 1, "": None}
    if str(row["answer"]) not in known:
        raise ValueError(f"the answer {row['answer']!r} is neither 1 nor 2")
    label = known[str(row["answer"])]
    return {"question": row["sentence"], "choices": [row["option1"], row["option2"]], "label": label}


def mmlu(row: Mapping[str, Any]) -> Fields:
    """Convert a row of MMLU.

    Args:
        row: With ``question``, ``choices``, ``subject`` and ``answer``: an index, or a letter.

    Returns:
        One of ours.
    """
    answer = row["answer"]
    label = LETTERS.index(answer) if isinstance(answer, str) else int(answer)
    return {"question": row["question"], "choices": list(row["choices"]), "label": label, "subject": row["subject"]}


def boolq(row: Mapping[str, Any]) -> Fields:
    """Convert a row of BoolQ, of SuperGLUE's copy or the original.

    Args:
        row: With ``passage``, ``question`` and ``label`` or ``answer``.

    Returns:
        One of ours.
    """
    label = row["answer"] if "answer" in row else row["label"]
    return {"passage": row["passage"], "question": row["question"], "label": _known(label)}


def columns(names: Mapping[str, str], label: str = "label") -> Converter:
    """Convert rows by giving their columns other names.

    Args:
        names: Ours to the hub's.
        label: Column with the class; -1 where it is hidden.

    Returns:
        The converter.
    """

    def convert(row: Mapping[str, Any]) -> Fields:
        return {ours: row[theirs] for ours, theirs in names.items()} | {"label": _known(row[label])}

    return convert


def with_options(fields: Fields, options: Sequence[str] | None) -> Fields:
    """Add the words for the classes as choices, where a row has none of its own.

    Args:
        fields: One of our rows.
        options: The words, or None.

    Returns:
        The row with ``choices``.

    Raises:
        ValueError: It has others of its own, or in another order.
    """
    if options is None:
        return fields
    if "choices" in fields and list(fields["choices"]) != list(options):
        raise ValueError(
            f"its choices are {', '.join(map(str, fields['choices']))}, and the task's, in the order of the labels, "
            f"{', '.join(options)}; leave the column out"
        )
    return fields | {"choices": list(options)}


def _letter(mark: Any) -> str:
    text = str(mark).strip()
    return LETTERS[int(text) - 1] if text in ("1", "2", "3", "4", "5") else text


def _known(label: Any) -> int | None:
    return None if label is None or int(label) < 0 else int(label)
