"""A row's label as a class index. Names are mapped by a list that somebody gave, never by sorting."""

import dataclasses
import math
import re
from collections.abc import Sequence

from laplace_lora.data.files import Row, is_text
from laplace_lora.errors import DataFileError, LaplaceLoRAError

LABEL_FIELDS = ("label", "labels")
_LARGEST = 1e30
_NUMBER = re.compile(r"[-+]?[0-9]+(\.0+)?")


@dataclasses.dataclass(frozen=True)
class LabelReader:
    """Reads labels of a task with known classes.

    Attributes:
        classes: Number of classes, K.
        names: Names in the order of the logits, or None where labels are indices only.
    """

    classes: int
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse names that do not fit the classes.

        Raises:
            LaplaceLoRAError: Their number differs, or one is given twice, is empty, or cannot be written.
        """
        if self.names is None:
            return
        if len(self.names) != self.classes:
            raise LaplaceLoRAError(
                f"{len(self.names)} label names ({_shown(self.names)}) for {self.classes} classes; give one name per "
                "class, in the order of the logits (--labels a,b,c)."
            )
        if len(set(self.names)) != len(self.names) or "" in self.names:
            raise LaplaceLoRAError(f"label names ({_shown(self.names)}) repeat or are empty; give each class its own.")
        if not is_text("".join(self.names)):
            raise LaplaceLoRAError(f"label names ({_shown(self.names)}) are no UTF-8 text; give others (--labels a,b).")

    def shown_names(self) -> tuple[str, ...]:
        """Return a name for every class, its index where it has none.

        Returns:
            K names.
        """
        return self.names or tuple(map(str, range(self.classes)))

    def read(self, row: Row, name: str) -> int | None:
        """Read a row's label.

        Args:
            row: The row.
            name: What messages call its file.

        Returns:
            The class index, or None if the row has no label (an empty CSV cell, a JSON null).

        Raises:
            DataFileError: The label is none of the classes.
        """
        value = next((row.fields[field] for field in LABEL_FIELDS if field in row.fields), None)
        where = f"{name}:{row.line}"
        if value is None or value == "":
            return None
        if isinstance(value, str):
            return self._of_text(value, where)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a column of integers with a gap somewhere, as data frames write it
        if isinstance(value, bool) and self.names is not None and str(value) in self.names:
            return self.names.index(str(value))  # JSON's true, where the answers are False and True
        if isinstance(value, bool) or not isinstance(value, int):
            raise DataFileError(
                f"{where}: the label {str(value)[:40]!r} is a {type(value).__name__}; write a class index or a name."
            )
        return self._of_index(value, where)

    def _of_text(self, value: str, where: str) -> int:
        if self.names is not None and value in self.names:
            return self.names.index(value)
        # In a CSV file everything is text; in JSON "1" is as good as 1. Where a name is a number, only names count.
        if _NUMBER.fullmatch(value.strip()) and len(value) < 10 and not self._named_by_numbers:
            return self._of_index(int(float(value)), where)
        if self.names is None:
            raise DataFileError(
                f"{where}: the label {value[:40]!r} is a name, and the order of the classes is not known; give it to "
                "train or fit with --labels a,b,c (the order of the logits)."
            )
        raise DataFileError(
            f"{where}: the label {value[:40]!r} is none of {_shown(self.names)}; mend it, or the --labels of fit."
        )

    @property
    def _named_by_numbers(self) -> bool:
        return any(_NUMBER.fullmatch(name) for name in self.names or ())

    def _of_index(self, value: int, where: str) -> int:
        if not 0 <= value < self.classes:
            raise DataFileError(
                f"{where}: the label {str(value)[:20]} is not an index from 0 to {self.classes - 1}, the adapter's "
                "classes; mend the row, or check that the adapter belongs to this task."
            )
        if self._named_by_numbers and self.shown_names()[value] != str(value):
            raise DataFileError(
                f"{where}: the label {value} may be an index or one of the names {_shown(self.names or ())}; write "
                "names as strings."
            )
        return value


@dataclasses.dataclass(frozen=True)
class RealReader:
    """Reads targets that are real numbers."""

    classes: int = 1
    names: None = None

    def shown_names(self) -> tuple[str, ...]:
        """Return no names.

        Returns:
            Nothing.
        """
        return ()

    def read(self, row: Row, name: str) -> float | None:
        """Read a row's target.

        Args:
            row: The row.
            name: What messages call its file.

        Returns:
            The number, or None if the row has none.

        Raises:
            DataFileError: It is no finite number.
        """
        value = next((row.fields[field] for field in LABEL_FIELDS if field in row.fields), None)
        if value is None or value == "":
            return None
        try:
            number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not abs(number) < _LARGEST:
            raise DataFileError(
                f"{name}:{row.line}: the label {str(value)[:40]!r} is no finite number, which this adapter predicts; "
                "write a number."
            )
        return number


class NoLabels:
    """Reads no labels: the texts say it all."""

    classes = 2
    names = None

    def shown_names(self) -> tuple[str, ...]:
        """Return what the two texts of a pair are.

        Returns:
            Two names.
        """
        return ("chosen", "rejected")

    def read(self, row: Row, name: str) -> None:
        """Read nothing.

        Args:
            row: The row.
            name: What messages call its file.

        Raises:
            DataFileError: It has a label, which would be left out.
        """
        if any(row.fields.get(field) is not None for field in LABEL_FIELDS):
            raise DataFileError(
                f"{name}:{row.line} has a label beside its two texts, which say it all; remove that field."
            )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(name[:40] for name in names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
