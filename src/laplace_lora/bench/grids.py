"""Plain tables of text, written as Markdown, LaTeX or HTML."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from laplace_lora.evaluation.markup import html_table

#: Columns of the widest table that LaTeX sets at its own size.
_FIT_A_PAGE = 7


class Cell(NamedTuple):
    """A figure as readers see it.

    Attributes:
        mean: Written out; empty for none.
        deviation: Written out; empty where there is none.
        best: Whether it is in bold.
        note: What is to be known of it.
    """

    mean: str = ""
    deviation: str = ""
    best: bool = False
    note: str = ""


class Grid(NamedTuple):
    """A table.

    Attributes:
        title: What it is.
        columns: Their names, that of the rows' names first.
        rows: Name and cells of each.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def markdown(grid: Grid) -> str:
    """Write a table for Markdown.

    Args:
        grid: The table.

    Returns:
        Its lines, without the title.
    """
    rows = [list(grid.columns), *([name, *map(_markdown, cells)] for name, cells in grid.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(grid.columns)}", *lines[1:]])


def latex(grid: Grid) -> str:
    """Write a table for LaTeX, with the rules of the package booktabs; a wide one is shrunk by that of graphicx.

    Args:
        grid: The table.

    Returns:
        A ``table`` with its caption.
    """
    rows = [" & ".join([_escaped(name), *map(_latex, cells)]) + r" \\" for name, cells in grid.rows]
    head = " & ".join(_escaped(column) for column in grid.columns) + r" \\"
    shape = r"\begin{tabular}{l" + "c" * (len(grid.columns) - 1) + "}"
    wide = len(grid.columns) > _FIT_A_PAGE
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escaped(grid.title)}}}",
            r"\centering",
            *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
            *(shape, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"),
            *(["}"] if wide else []),
            r"\end{table}",
        ]
    )


def html(grid: Grid) -> str:
    """Write a table for a page.

    Args:
        grid: The table.

    Returns:
        HTML, without the title.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in grid.columns)
    lines = [f"<tr><td>{escape(name)}</td>{''.join(map(_html, cells))}</tr>" for name, cells in grid.rows]
    return html_table(grid.title, head, lines)


def _markdown(cell: Cell) -> str:
    text = f"{cell.mean} ± {cell.deviation}" if cell.deviation else cell.mean
    return (f"**{text}**" if cell.best else text) + (f" ({cell.note})" if cell.note else "")


def _latex(cell: Cell) -> str:
    if not cell.mean:
        return ""
    note = f" ({_escaped(cell.note)})" if cell.note else ""
    try:
        float(cell.mean)
    except ValueError:
        return (rf"\textbf{{{_escaped(cell.mean)}}}" if cell.best else _escaped(cell.mean)) + note
    digits, _, power = cell.mean.partition("e")
    number = rf"{digits} \times 10^{{{int(power)}}}" if power else digits
    shown = rf"\mathbf{{{number}}}" if cell.best else number
    return (rf"${shown}_{{\pm {cell.deviation}}}$" if cell.deviation else f"${shown}$") + note


def _html(cell: Cell) -> str:
    deviation = f" <small>± {escape(cell.deviation)}</small>" if cell.deviation else ""
    mean = f"<b>{escape(cell.mean)}</b>" if cell.best else escape(cell.mean)
    note = f" <small>({escape(cell.note)})</small>" if cell.note else ""
    return f"<td>{mean}{deviation}{note}</td>"


def _escaped(text: str) -> str:
    for plain, written in (("\\", r"\textbackslash{}"), ("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#")):
        text = text.replace(plain, written)
    return text
