"""Pieces of HTML that the reports share. Their callers escape what comes from outside."""

from collections.abc import Sequence
from html import escape

from laplace_lora.evaluation.tables import Cell


def html_table(label: str, head: str, lines: Sequence[str], css: str = "numbers") -> str:
    """Write a table that scrolls sideways by itself where the screen is narrow.

    Args:
        label: What it is, for screen readers; escaped here.
        head: The ``th`` cells; empty for a table without a head.
        lines: The ``tr`` rows.
        css: Its class.

    Returns:
        HTML.
    """
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    body = "\n".join(lines)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label, quote=True)}">'
        f'<table class="{css}">{top}<tbody>\n{body}\n</tbody></table></div>'
    )


def html_cell(cell: Cell) -> str:
    """Write one figure with its interval below it.

    Args:
        cell: The figure.

    Returns:
        A ``td`` cell.
    """
    value, interval = (part.replace("-", "&minus;").replace("inf", "&infin;") for part in (cell.value, cell.interval))
    word = f'<b class="{cell.outcome}">{cell.outcome}</b> ' if cell.outcome else ""
    below = f"<small>{interval}</small>" if interval else ""
    return f'<td class="figure">{word}{value}{below}</td>'
