"""One reading of a data file before anything is run on it: every row is checked, nothing is kept."""

import dataclasses
from collections.abc import Iterator
from typing import Literal, NamedTuple

from tqdm import tqdm

from laplace_lora.data.files import Row
from laplace_lora.data.labels import LabelReader, NoLabels, RealReader
from laplace_lora.data.layouts import CLASSES, Layout
from laplace_lora.data.sources import RowSource, Source, described, open_rows
from laplace_lora.data.templates import RowFormat, close_template, join_pair
from laplace_lora.errors import DataFileError

Labels = Literal["required", "optional", "ignored"]
Reader = LabelReader | RealReader | NoLabels


class Example(NamedTuple):
    """A row made ready for the tokenizer.

    Attributes:
        line: Line in its file.
        text: The text.
        pair: The second text, or None.
        label: Class index, target, or None.
        choices: The second texts, where there are several.
        listed: Number of choices of the row.
    """

    line: int
    text: str
    pair: str | None
    label: float | None
    choices: tuple[str, ...] = ()
    listed: int = 0

    @property
    def shown(self) -> str:
        """All of the row's texts, for people."""
        more = self.choices or (() if self.pair is None else (self.pair,))
        return "\n".join((self.text, *more))


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A file whose every row is known to be good. Its rows are read again whenever they are wanted.

    Attributes:
        source: Where its rows are.
        name: What messages call it.
        form: How its rows become text.
        labels: Reads its labels; None where they are ignored.
        count: Number of rows.
        label_counts: Rows of every class; all 0 without labels, empty where labels are no classes.
        layout: What a row's texts are to each other.
        labelled: Whether the rows have labels, or need none.
        most_choices: Choices of the row that has most.
        fewest_choices: Choices of the row that has fewest.
    """

    source: Source
    name: str
    form: RowFormat
    labels: Reader | None
    count: int
    label_counts: tuple[int, ...]
    layout: Layout = CLASSES
    labelled: bool = False
    most_choices: int = 0
    fewest_choices: int = 0

    def __iter__(self) -> Iterator[Example]:
        """Yield the rows in order."""
        return _examples(self.source, self.name, self.form, self.labels, self.layout)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.count

    @property
    def described(self) -> str:
        """One line for people: where the rows come from, and how many they are."""
        return described(self.source, self.count)

    @property
    def majority(self) -> float:
        """Share of the commonest class, the accuracy of always answering it."""
        return max(self.label_counts, default=0) / self.count


def scan(
    source: Source,
    reader: Reader,
    *,
    layout: Layout = CLASSES,
    form: RowFormat | None = None,
    pairs: bool = True,
    labels: Labels = "required",
    name: str | None = None,
    progress: bool = False,
    eos_token: str | None = None,
) -> DataFile:
    """Check a whole file, one row at a time.

    Args:
        source: The file, or something else with rows.
        reader: Reads labels.
        layout: What a row's texts are to each other.
        form: How rows become text; as the source says, or recognised from the first row, if not given.
        pairs: Whether the tokenizer puts something between two texts.
        labels: Whether every row must have one; with ``optional``, all or none.
        name: What messages call the file; its path if not given.
        progress: Whether to show a progress bar once a second has gone by.
        eos_token: The tokenizer's end-of-sequence token, for templates that end in it.

    Returns:
        The file.

    Raises:
        DataFileError: The file is empty, or a row is bad; names file and line.
    """
    name = name or str(source)
    counts = [0] * (reader.classes if isinstance(reader, LabelReader) else 0)
    total = labelled = most = 0
    fewest: int | None = None
    used = None if labels == "ignored" else reader
    if form is None:
        first = next(open_rows(source, name), None)
        if first is None:
            raise DataFileError(f"{name} has no rows; give a file with at least one example.")
        own = source.form(layout.style) if isinstance(source, RowSource) else None
        if own is None:
            form = layout.recognise(first, name, pairs)
        else:
            form = own if pairs or layout.parts != "single" else join_pair(own)
    form = close_template(form, eos_token, name)
    form.fields()  # a malformed template is not the first row's fault
    rows = _examples(source, name, form, used, layout)
    for example in tqdm(rows, desc=f"check {name}", unit="row", delay=1.0, disable=not progress):
        total += 1
        most = max(most, example.listed)
        fewest = example.listed if fewest is None else min(fewest, example.listed)
        if example.label is not None:
            labelled += 1
            if counts:
                counts[int(example.label)] += 1
        elif labels == "required" and layout.labels != "none":
            remedy = source.unlabelled if isinstance(source, RowSource) else "add a field 'label' to every row."
            raise DataFileError(f"{name}:{example.line} has no label; {remedy}")
        if labels == "optional" and labelled not in (0, total):
            raise DataFileError(f"{name}:{example.line}: some rows have labels and some have none; label all or none.")
    if total == 0:
        raise DataFileError(f"{name} has no rows; give a file with at least one example.")
    has_labels = labelled > 0 or (layout.labels == "none" and labels != "ignored")
    return DataFile(source, name, form, used, total, tuple(counts), layout, has_labels, most, fewest or 0)


def _examples(source: Source, name: str, form: RowFormat, reader: Reader | None, layout: Layout) -> Iterator[Example]:
    for row in open_rows(source, name):
        label = reader.read(row, name) if reader is not None else None
        if layout.parts == "choices":
            text, choices = form.render_choices(row, name)
            _require_present(row, name, label, len(choices))
            yield Example(row.line, text, None, label, choices, len(choices))
            continue
        text, pair = form.render(row, name)
        listed = row.fields.get("choices") if layout.keep_end else None
        count = len(listed) if isinstance(listed, list) else 0
        if count:
            _require_present(row, name, label, count)
        yield Example(row.line, text, pair, label, listed=count)


def _require_present(row: Row, name: str, label: float | None, choices: int) -> None:
    if label is not None and label >= choices:
        raise DataFileError(
            f"{name}:{row.line}: the label {int(label)} is none of the row's {choices} choices, counted from 0; mend "
            "it."
        )
