"""The one table of data sets and methods: a line for each of both, with the split and the number of examples.

``evaluate``, its report and the pages under docs/ all write it, for a terminal, in HTML and in Markdown, from
comparisons or from what was saved of them.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from laplace_lora.evaluation.comparison import Comparison
from laplace_lora.evaluation.markup import html_cell, html_table
from laplace_lora.evaluation.names import method_name
from laplace_lora.evaluation.ood import OutOfDistribution
from laplace_lora.evaluation.tables import Cell, number, short_name

OWN_SPLIT = " (own split)"
#: What stands under a table with such a set.
OWN_SPLIT_NOTE = "own split: not the published one; beside no published figure"
_FIXED = ("set", "n", "method")
_INFINITE = ("nll", "kl")  # JSON holds null where these are infinite
#: What all methods' detection of outside data is compared by.
DETECTED_BY = "entropy"


class DataSet(NamedTuple):
    """Where figures are from.

    Attributes:
        name: A task and its split, or a file.
        n: Number of examples.
        own_split: Whether the split is not the published one.
    """

    name: str
    n: int
    own_split: bool = False

    @classmethod
    def of(cls, where: Mapping[str, Any], n: int | None = None) -> "DataSet":
        """Name a data set by where its rows come from.

        Args:
            where: Its provenance: ``task``, ``split`` and ``own_split``, or ``file``; ``rows`` too, unless ``n`` is
                given.
            n: Number of examples.

        Returns:
            The data set.
        """
        named = [str(where[key]) for key in ("task", "split") if where.get(key)]
        name = ", ".join(named) if "task" in where else str(where.get("file", where.get("source", "data")))
        return cls(name, int(where["rows"] if n is None else n), bool(where.get("own_split", False)))

    @property
    def title(self) -> str:
        """The name, marked if the split is not the published one."""
        return self.name + OWN_SPLIT * self.own_split


@dataclasses.dataclass(frozen=True)
class Line:
    """One method on one data set.

    Attributes:
        data: The data set.
        method: What the method is called.
        figures: Figures by name, as ``Scores.to_dict`` writes them; ``detection`` is the AUROC of telling these data
            from the evaluated ones. None for what is undefined, or infinite.
        difference: Log loss less the reference's: estimate, low, high; None where there is none.
        more: Text of the caller's own columns.
    """

    data: DataSet
    method: str
    figures: Mapping[str, Any]
    difference: Mapping[str, float | None] | None = None
    more: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def block(self) -> tuple[DataSet, bool]:
        """What lines under one heading share: the data, and whether they are told from the evaluated ones."""
        return self.data, "detection" in self.figures


class _Column(NamedTuple):
    head: str
    short: str  # for a terminal


_COLUMNS = {
    "set": _Column("data", ""),
    "n": _Column("n", ""),
    "method": _Column("method", ""),
    "accuracy": _Column("accuracy", "acc."),
    "nll": _Column("NLL", "NLL"),
    "kl": _Column("KL to the truth", "KL"),
    "ece": _Column("ECE", "ECE"),
    "ece_floor": _Column("ECE floor", "floor"),
    "brier": _Column("Brier", "Brier"),
    "auroc": _Column("AUROC", "AUROC"),
    "aurc": _Column("AURC", "AURC"),
    "detection": _Column("told apart (AUROC)", "apart"),
    "rmse": _Column("RMSE", "RMSE"),
    "coverage_95": _Column("in the 95 % interval", "in 95%"),
    "difference": _Column("NLL less MAP's", "NLL less MAP's"),
}
#: Columns where nothing else is asked for; those without a figure are left out.
COLUMNS = ("set", "n", "method", "accuracy", "nll", "ece", "ece_floor", "brier", "auroc", "aurc", "detection")


def lines_of(
    data: DataSet,
    comparison: Comparison | Mapping[str, Any] | None,
    *,
    detection: OutOfDistribution | Mapping[str, Any] | None = None,
    methods: Sequence[str] | None = None,
    more: Mapping[str, str] | None = None,
) -> list[Line]:
    """Make the lines of one data set.

    Args:
        data: The data set.
        comparison: Its figures, or what ``to_dict`` made of them; None where the set has no labels.
        detection: How well it is told from the evaluated data, or what ``to_dict`` made of it.
        methods: Those to show; all if None.
        more: Text of the caller's own columns, the same for every line.

    Returns:
        One line per method.
    """
    document: Mapping[str, Any] = comparison.to_dict() if isinstance(comparison, Comparison) else comparison or {}
    detected = detection.to_dict() if isinstance(detection, OutOfDistribution) else detection or {"methods": {}}
    apart = {name: found[DETECTED_BY]["auroc"]["estimate"] for name, found in detected["methods"].items()}
    figures: Mapping[str, Mapping[str, Any]] = document.get("methods", {})
    differences = document.get("differences", {}) if document.get("reference", "map") == "map" else {}
    lines = []
    for name in methods or [*(figures or apart)]:
        values = dict(figures.get(name, {}))
        if name in apart:
            values["detection"] = apart[name]
        difference = differences.get(name, {}).get("nll")
        lines.append(Line(data, method_name(name), values, difference, more or {}))
    return lines


def markdown_table(lines: Sequence[Line], columns: Sequence[str] = COLUMNS) -> str:
    """Write the table in Markdown.

    Args:
        lines: Data sets and methods.
        columns: Names of figures, ``set``, ``n``, ``method``, ``difference``, and of the caller's own columns.

    Returns:
        The table, and a note where a split is not the published one.
    """
    shown = _shown(lines, columns)
    table = [[_head(name) for name in shown], ["---"] * len(shown)]
    texts = _texts(lines, shown)
    table += [[_markdown(name, cell) for name, cell in zip(shown, line, strict=True)] for line in texts]
    text = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table)
    return "\n\n".join([text, *_notes(lines)])


def html_side_by_side(lines: Sequence[Line], columns: Sequence[str] = (*COLUMNS, "difference")) -> str:
    """Write the table in HTML; names from outside are escaped.

    Args:
        lines: Data sets and methods.
        columns: As for :func:`markdown_table`.

    Returns:
        The table, and a note where a split is not the published one.
    """
    shown = _shown(lines, columns)
    head = "".join(f"<th{_word(name)}>{escape(_head(name))}</th>" for name in shown)
    rows = []
    for line in _texts(lines, shown):
        cells = [
            html_cell(cell) if _is_figure(name) else f"<td{_word(name)}>{escape(cell.value)}</td>"
            for name, cell in zip(shown, line, strict=True)
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f'<p class="note">{note}.</p>' for note in _notes(lines))
    return html_table("Data sets side by side", head, rows) + notes


def terminal_side_by_side(lines: Sequence[Line], columns: Sequence[str] = COLUMNS) -> str:
    """Write the table for a terminal: each data set with its size on a line, its methods below.

    Args:
        lines: Data sets and methods.
        columns: As for :func:`markdown_table`.

    Returns:
        Lines, of at most 88 characters but for long names of data sets; without a final line break.
    """
    figures = [name for name in _shown(lines, columns) if name not in _FIXED]
    wide = max(len(short_name(line.method)) for line in lines) + 4
    text = [" " * wide + "".join(f"{_COLUMNS[name].short:>7}" for name in figures)]
    text.append("-" * len(text[0]))
    last = None
    for line in lines:
        if line.block != last:
            text.append(f"{line.data.title}, n = {line.data.n:,}")
            last = line.block
        cells = "".join(f"{_cell(line, name).value:>7}" for name in figures)
        text.append(f"  {short_name(line.method):<{wide - 2}}{cells}".rstrip())
    if "detection" in figures:
        text.append(f"apart: AUROC of telling these data from the evaluated ones by their {DETECTED_BY}; 0.5 is none")
    return "\n".join([*text, *_notes(lines)])


def _shown(lines: Sequence[Line], columns: Sequence[str]) -> list[str]:
    """Leave out figures that no line has; the caller's own columns stay."""
    return [name for name in columns if not _is_figure(name) or any(_cell(line, name).value for line in lines)]


def _texts(lines: Sequence[Line], columns: Sequence[str]) -> Iterator[list[Cell]]:
    """Yield the cells line by line; what comes before the method is not said again."""
    start = list(columns).index("method") if "method" in columns else 0
    last = None
    for line in lines:
        cells = [_cell(line, name) for name in columns]
        leading = (line.block, *cells[:start])
        yield [Cell("", "")] * start + cells[start:] if leading == last else cells
        last = leading


def _cell(line: Line, column: str) -> Cell:
    if column in line.more:
        return Cell(line.more[column], "")
    if column == "difference":
        if line.difference is None:
            return Cell("", "")
        low, high = line.difference["low"], line.difference["high"]
        ends = "" if low is None or high is None else f"[{number(low, '+')}, {number(high, '+')}]"
        return Cell(number(line.difference["estimate"], "+"), ends)
    fixed = {"set": line.data.title, "n": f"{line.data.n}", "method": line.method}
    if column in fixed:
        return Cell(fixed[column], "")
    if column not in line.figures:
        return Cell("", "")
    value = line.figures[column]
    return Cell("inf" if value is None and column in _INFINITE else number(value), "")


def _is_figure(column: str) -> bool:
    return column in _COLUMNS and column not in _FIXED


def _markdown(column: str, cell: Cell) -> str:
    value = cell.value.replace("inf", "∞") if _is_figure(column) else cell.value
    return f"{value} {cell.interval}".rstrip()


def _head(column: str) -> str:
    return _COLUMNS[column].head if column in _COLUMNS else column


def _word(column: str) -> str:
    """Return the class of cells that hold words."""
    return ' class="word"' if column in ("set", "method") else ""


def _notes(lines: Sequence[Line]) -> list[str]:
    return [OWN_SPLIT_NOTE] if any(line.data.own_split for line in lines) else []
