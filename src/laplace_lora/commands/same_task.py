"""Whether rows of a known task mean what an adapter's classes mean, and whether two sets share rows."""

import json

from laplace_lora.commands.console import Console
from laplace_lora.data import Layout, RowSource, Source, open_rows
from laplace_lora.data.labels import LABEL_FIELDS
from laplace_lora.errors import DataFileError

# Of the same row in two places, these may differ.
_NOT_CONTENT = (*LABEL_FIELDS, "id", "idx")


def foreign_classes(source: Source, layout: Layout, names: tuple[str, ...] | None) -> str | None:
    """Say why a known task's labels mean something else than an adapter's classes.

    Args:
        source: The rows. Of a file nothing is known.
        layout: How they become inputs.
        names: Names of the adapter's classes, in the order of the logits.

    Returns:
        The reason; None where nothing speaks against them. An index into the choices of its own row means the same
        everywhere.
    """
    if not isinstance(source, RowSource) or layout.labels != "class" or layout.parts == "choices":
        return None
    theirs = source.answers() if layout.style == "answers" else source.label_names
    ours = names
    if layout.style == "answers" and ours is not None and theirs is not None:
        ours = ours[: len(theirs)]  # fewer letters than the adapter answers by are still the same letters
    if _plain(theirs) == _plain(ours):
        return None
    return f"its classes are {_shown(theirs)}, and the adapter's are {_shown(names)}"


def require_same_classes(source: Source | None, layout: Layout, names: tuple[str, ...] | None) -> None:
    """Refuse labels of another task.

    Args:
        source: The rows; None for none.
        layout: How they become inputs.
        names: Names of the adapter's classes.

    Raises:
        DataFileError: They mean something else.
    """
    reason = None if source is None else foreign_classes(source, layout, names)
    if reason is not None:
        raise DataFileError(
            f"{source} is another task: {reason}; give rows of the adapter's task or, where only the names differ, fit "
            "with --labels and the task's names."
        )


def warn_of_shared_rows(console: Console, data: Source, other: Source | None, consequence: str) -> None:
    """Say so if rows of one set stand in the other.

    Args:
        console: Takes the warning.
        data: One set.
        other: The other; None for none.
        consequence: What that does.
    """
    if other is None:
        return
    known = {_content(row.fields) for row in open_rows(data)}
    shared = sum(_content(row.fields) in known for row in open_rows(other))
    if shared:
        console.warn(f"{shared} rows of {other} stand in {data} too: {consequence}; give other rows.")


def _content(fields: dict[str, object]) -> str:
    kept = {key: value for key, value in fields.items() if key not in _NOT_CONTENT}
    return json.dumps(kept, sort_keys=True, default=str)


def _plain(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else [name.lower().replace("_", " ").replace("-", " ") for name in names]


def _shown(names: tuple[str, ...] | None) -> str:
    return "without names" if names is None else ", ".join(names)[:80]
