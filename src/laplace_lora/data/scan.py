"""One reading of a data file before anything is run on it: every row is checked, nothing is kept."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from tqdm import tqdm

from laplace_lora.data.files import open_rows
from laplace_lora.data.labels import LabelReader
from laplace_lora.data.templates import RowFormat, row_format
from laplace_lora.errors import DataFileError

Labels = Literal["required", "optional", "ignored"]


class Example(NamedTuple):
    """A row made ready for the tokenizer.

    Attributes:
        line: Line in its file.
        text: The text.
        pair: The second text, or None.
        label: Class index, or None.
    """

    line: int
    text: str
    pair: str | None
    label: int | None


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A file whose every row is known to be good. Its rows are read again whenever they are wanted.

    Attributes:
        path: The file.
        name: What messages call it.
        form: How its rows become text.
        labels: Reads its labels; None where they are ignored.
        count: Number of rows.
        label_counts: Rows of every class; all 0 without labels.
    """

    path: Path
    name: str
    form: RowFormat
    labels: LabelReader | None
    count: int
    label_counts: tuple[int, ...]

    def __iter__(self) -> Iterator[Example]:
        """Yield the rows in order."""
        return _examples(self.path, self.name, self.form, self.labels)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.count

    @property
    def labelled(self) -> bool:
        """Whether the rows have labels."""
        return sum(self.label_counts) > 0

    @property
    def majority(self) -> float:
        """Share of the commonest class, the accuracy of always answering it."""
        return max(self.label_counts, default=0) / self.count


def scan(
    path: Path,
    reader: LabelReader,
    *,
    form: RowFormat | None = None,
    pairs: bool = True,
    labels: Labels = "required",
    name: str | None = None,
    progress: bool = False,
) -> DataFile:
    """Check a whole file, one row at a time.

    Args:
        path: The file.
        reader: Reads labels.
        form: How rows become text; recognised from the first row if not given.
        pairs: Whether the tokenizer puts something between two texts.
        labels: Whether every row must have one; with ``optional``, all or none.
        name: What messages call the file; its path if not given.
        progress: Whether to show a progress bar once a second has gone by.

    Returns:
        The file.

    Raises:
        DataFileError: The file is empty, or a row is bad; names file and line.
    """
    name = name or str(path)
    counts = [0] * reader.classes
    total = 0
    used = None if labels == "ignored" else reader
    if form is None:
        first = next(open_rows(path, name), None)
        if first is None:
            raise DataFileError(f"{name} has no rows; give a file with at least one example.")
        form = row_format(first, name, pairs)
    form.fields()  # a malformed template is not the first row's fault
    rows = _examples(path, name, form, used)
    for example in tqdm(rows, desc=f"check {name}", unit="row", delay=1.0, disable=not progress):
        if example.label is not None:
            counts[example.label] += 1
        elif labels == "required":
            raise DataFileError(f"{name}:{example.line} has no label; add a field 'label' to every row.")
        total += 1
        if labels == "optional" and sum(counts) not in (0, total):
            raise DataFileError(f"{name}:{example.line}: some rows have labels and some have none; label all or none.")
    if total == 0:
        raise DataFileError(f"{name} has no rows; give a file with at least one example.")
    return DataFile(path, name, form, used, total, tuple(counts))


def _examples(path: Path, name: str, form: RowFormat, reader: LabelReader | None) -> Iterator[Example]:
    for row in open_rows(path, name):
        label = reader.read(row, name) if reader is not None else None
        yield Example(row.line, *form.render(row, name), label)
