"""A fold of rows, and all rows but a fold: every row is held out once."""

import json
import random
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from laplace_lora.data.files import Row
from laplace_lora.data.sources import RowSource, Source, Style, open_rows, provenance
from laplace_lora.data.templates import RowFormat

_SEED = 0


class FoldRows(RowSource):
    """The rows of a fold, or all others: drawn at random, always the same way, and equal rows into the same fold."""

    def __init__(self, source: Source, fold: int, folds: int, classes: int | None, *, held_out: bool) -> None:
        """Choose rows; they are read when they are first wanted.

        Args:
            source: All rows.
            fold: Which fold, from 0.
            folds: Their number.
            classes: Number of classes of all rows together; None where they are counted.
            held_out: Whether these are the fold's rows, or all others.
        """
        self.source, self.fold, self.folds, self.held_out = source, fold, folds, held_out
        self._classes = classes

    def __str__(self) -> str:
        """Return what messages call the rows."""
        return f"{self.source} ({'' if self.held_out else 'all but '}fold {self.fold + 1} of {self.folds})"

    def rows(self) -> Iterator[Row]:
        """See :meth:`RowSource.rows`; lines are those of all rows."""
        for row in open_rows(self.source):
            if (self._places[_content(row)] % self.folds == self.fold) == self.held_out:
                yield row

    @cached_property
    def _places(self) -> dict[str, int]:
        """Rows' contents in a random order. Rows that stand class by class, or in turn, would spoil any other one."""
        different = list(dict.fromkeys(_content(row) for row in open_rows(self.source)))
        random.Random(_SEED).shuffle(different)
        return {content: place for place, content in enumerate(different)}

    def provenance(self) -> dict[str, Any]:
        """See :meth:`RowSource.provenance`."""
        return {**provenance(self.source), "fold": self.fold, "folds": self.folds, "held_out": self.held_out}

    @property
    def shown(self) -> str:
        """See :attr:`RowSource.shown`."""
        return str(self)

    def form(self, style: Style) -> RowFormat | None:
        """See :meth:`RowSource.form`."""
        return self.source.form(style) if isinstance(self.source, RowSource) else None

    def answers(self) -> tuple[str, ...] | None:
        """See :meth:`RowSource.answers`."""
        return self.source.answers() if isinstance(self.source, RowSource) else None

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """See :attr:`RowSource.label_names`."""
        return self.source.label_names if isinstance(self.source, RowSource) else None

    @property
    def classes(self) -> int | None:
        """See :attr:`RowSource.classes`."""
        return self._classes


def _content(row: Row) -> str:
    return json.dumps(row.fields, sort_keys=True, default=str)
