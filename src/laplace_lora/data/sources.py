"""Where rows come from: a file of the user's, or something that makes them, such as a split of a known task."""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from laplace_lora.data.files import Row, file_rows
from laplace_lora.data.templates import RowFormat

#: Ways in which rows become inputs: one text (or pair) per row for a classifier; a prompt that a language model answers
#: by one token; choices that continue a question; choices that an encoder reads beside the question; anything else.
Style = Literal["class", "answers", "options", "encoder-options", "other"]


class RowSource(abc.ABC):
    """Rows that are no file of the user's. ``str`` is what messages call it."""

    @abc.abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yield the rows in order, the same at every call.

        Yields:
            Rows; ``line`` counts them from 1, as they stand where they come from.
        """

    @abc.abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Say where the rows come from.

        Returns:
            JSON values for the files that verbs write.
        """

    @property
    @abc.abstractmethod
    def shown(self) -> str:
        """One line for people: what the rows are, how many, where from, and what that means for comparisons."""

    def form(self, style: Style) -> RowFormat | None:
        """Say how rows are written out.

        Args:
            style: For which way of reading.

        Returns:
            The templates; None where the shape of the rows is to decide.
        """
        return None

    def answers(self) -> tuple[str, ...] | None:
        """Say by which words the prompt of the style ``answers`` is answered.

        Returns:
            One word per class; None where the shape of the rows is to decide.
        """
        return None

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the labels; None where there are none."""
        return None

    @property
    def classes(self) -> int | None:
        """Number of classes, also those that no row at hand is of; None where the rows are to be counted."""
        return None

    @property
    def unlabelled(self) -> str:
        """What to do where labels are wanted and a row has none."""
        return "add a field 'label' to every row."

    def __deepcopy__(self, memo: dict[int, Any]) -> "RowSource":
        """Return itself: settings are copied when they are saved, and rows never change."""
        return self


#: Where verbs read rows.
Source = Path | RowSource


def open_rows(source: Source, name: str | None = None) -> Iterator[Row]:
    """Read rows, holding one at a time where they are in a file.

    Args:
        source: A JSONL or CSV file (see :func:`file_rows`), or something else with rows.
        name: What messages call it; the path if not given.

    Returns:
        The rows, in order.

    Raises:
        DataFileError: The file cannot be read, or a row cannot be; names file and line. (Raised as rows are read.)
    """
    return source.rows() if isinstance(source, RowSource) else file_rows(source, name or str(source))


def provenance(source: Source) -> dict[str, Any]:
    """Say where rows come from.

    Args:
        source: A file or something else with rows.

    Returns:
        JSON values; of a file, its path under ``file``.
    """
    return source.provenance() if isinstance(source, RowSource) else {"file": str(source)}


def described(source: Source, count: int) -> str:
    """Say for people where rows come from, and how many they are.

    Args:
        source: A file or something else with rows, which says their number itself.
        count: Number of rows.

    Returns:
        One line.
    """
    return source.shown if isinstance(source, RowSource) else f"{source}, n = {count:,}"
