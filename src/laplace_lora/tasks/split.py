"""A split of a task, or a part of one, as rows for every verb."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from laplace_lora.data import Row, RowFormat, RowSource, Style
from laplace_lora.errors import DataFileError
from laplace_lora.tasks.base import Fields, Task
from laplace_lora.tasks.convert import with_options
from laplace_lora.tasks.folder import load
from laplace_lora.tasks.loaded import Found
from laplace_lora.tasks.prompts import PAPER, PROMPTS

SPLITS = ("train", "validation", "test")
#: The paper's second protocol: the prior and the temperature are tuned on the last fifth of the training rows.
KEPT_FOR_TRAINING, HELD_OUT = "[:80%]", "[80%:]"
_SELECTION = re.compile(r"(train|validation|test)(\[(\d*%?):(\d*%?)\])?")


class TaskSplit(RowSource):
    """Rows of a split that belong to the task, with what the hub calls them and how they are asked."""

    def __init__(self, task: Task, selection: str, folder: Path | None = None, prompts: str | None = None) -> None:
        """Choose rows; they are read when they are first wanted.

        Args:
            task: The task.
            selection: ``train``, ``validation`` or ``test``, or a part of it as ``datasets`` writes it:
                ``train[:80%]``, ``train[80%:]``, ``test[:100]``. The part is taken after the filter, percentages are
                rounded down.
            folder: Holds copies of tasks; None for the hub.
            prompts: Whose prompts; the paper's if None.

        Raises:
            DataFileError: There is no such selection, or there are no such prompts.
        """
        match = _SELECTION.fullmatch(selection.replace(" ", ""))
        if match is None:
            raise DataFileError(
                f"{selection!r} is no part of {task.name}; write a split ({', '.join(SPLITS)}), perhaps with a part of "
                "it: train[:80%], train[80%:] or test[:100]."
            )
        if prompts not in (None, *PROMPTS):
            raise DataFileError(f"prompts {prompts!r} are not known; choose {', '.join(PROMPTS)}, or give --template.")
        self.task, self.folder, self.prompts = task, folder, prompts
        self.split, self.part, self._ends = match[1], match[2] or "", (match[3] or "", match[4] or "")

    def __str__(self) -> str:
        """Return what messages call the rows."""
        return f"{self.task.name}:{self.split}{self.part}"

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._selected)

    def rows(self) -> Iterator[Row]:
        """See :meth:`RowSource.rows`; lines count the rows of the whole split, those left out included."""
        return iter(self._selected)

    def form(self, style: Style) -> RowFormat | None:
        """See :meth:`RowSource.form`."""
        return self.task.form(style, self.prompts or PAPER)

    def answers(self) -> tuple[str, ...]:
        """See :meth:`RowSource.answers`."""
        return self.task.answers

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """See :attr:`RowSource.label_names`."""
        return self.task.names

    @property
    def classes(self) -> int:
        """See :attr:`RowSource.classes`."""
        return self.task.choices

    @property
    def unlabelled(self) -> str:
        """See :attr:`RowSource.unlabelled`."""
        if self.split in self.task.hidden:
            return f"the hub hides the labels of {self.split}: use {self.task.name}:{self.task.evaluation}."
        return super().unlabelled

    @property
    def own_split(self) -> bool:
        """Whether these are other rows than published figures are of."""
        whole = self.part in ("", KEPT_FOR_TRAINING, HELD_OUT) if self.split == "train" else not self.part
        return self._read.found.official is None or not whole

    @property
    def shown(self) -> str:
        """See :attr:`RowSource.shown`."""
        found = self._read.found
        said = [f"from {found.source}"]
        if found.official is not None and found.counted:
            said.append(f"by its {len(found.rows):,} rows the hub's {found.official} split")
        if self._read.left_out:
            said.append(f"{self._read.left_out} of {len(found.rows)} rows without {self._choices} left out")
        if found.passed_over:
            said.append(f"{found.passed_over} is another split, to be named as a file")
        if self.own_split:
            said.append(f"{'a part of it, ' if found.official is not None else ''}OWN SPLIT, not the published one")
        elif found.official not in ("train", self.task.evaluation):
            said.append(f"published figures are of the {self.task.evaluation} split")
        return f"{self}, n = {len(self):,}: {'; '.join(said)}"

    def provenance(self) -> dict[str, Any]:
        """See :meth:`RowSource.provenance`."""
        found = self._read.found
        return {
            "task": self.task.name,
            "split": f"{self.split}{self.part}",
            "rows": len(self),
            "rows_of_the_split": len(found.rows),
            "left_out": self._read.left_out,
            "own_split": self.own_split,
            "hub_split": found.official,
            "published_split": not self.own_split and found.official == self.task.evaluation,
            "source": found.source,
            "hub": dataclasses.asdict(self.task.hub),
            "known_by": "number of rows" if found.counted else "revision",
        }

    @property
    def _choices(self) -> str:
        return f"{'exactly' if self.task.exactly else 'at most'} {self.task.choices} choices"

    @cached_property
    def _read(self) -> "_Read":
        found = load(self.task, self.split, self.folder)
        if not found.rows:
            raise DataFileError(f"{self} has no rows in {found.source}; check the copy.")
        kept, left_out = [], 0
        for line, raw in enumerate(found.rows, start=1):
            fields = self._ours(raw, line)
            if self.task.keeps(fields):
                kept.append(Row(line, fields))
            else:
                left_out += 1
        if not kept:
            raise DataFileError(f"none of the {left_out} rows of {self} has {self._choices}; choose another task.")
        return _Read(found, kept, left_out)

    @cached_property
    def _selected(self) -> list[Row]:
        rows = self._read.kept
        begin, end = (_boundary(text, len(rows)) for text in self._ends)
        chosen = rows[begin or 0 : len(rows) if end is None else end]
        if not chosen:
            raise DataFileError(f"{self} has no rows: the split has {len(rows)}; choose another part of it.")
        return chosen

    def _ours(self, raw: Mapping[str, Any], line: int) -> Fields:
        """Convert a row, unless it is one of ours already."""
        task = self.task
        try:
            ours = set(task.fields) <= set(raw) and "label" in raw and isinstance(raw.get("choices", []), list)
            # The original's own columns have the same names as ours but for the answer.
            if isinstance(raw.get("choices"), str):
                raise ValueError("a cell of a table holds one text, not a list of choices: write the rows as JSONL")
            fields = self._labelled(raw) if ours and "answerKey" not in raw else task.convert(raw)
            fields = with_options(fields, task.options)
        except KeyError as error:
            raise DataFileError(
                f"{self}:{line} has the columns {', '.join(map(str, raw))} and lacks {error}; give the columns of "
                f"{task.hub.repository}, or {', '.join(task.fields)} and label."
            ) from None
        except (ValueError, TypeError, IndexError) as error:
            raise DataFileError(f"{self}:{line} cannot be read ({error}); mend the copy.") from None
        return fields

    def _labelled(self, raw: Mapping[str, Any]) -> Fields:
        """Read a label by its name, or as hidden."""
        label, names = raw["label"], self.task.names or ()
        known = names.index(label) if label in names else None if label == -1 else label
        return dict(raw) | {"label": known}


@dataclasses.dataclass(frozen=True)
class _Read:
    found: Found
    kept: list[Row]
    left_out: int


def _boundary(text: str, count: int) -> int | None:
    if not text or text == "%":
        return None
    number = int(text.removesuffix("%"))
    return count * number // 100 if text.endswith("%") else number
