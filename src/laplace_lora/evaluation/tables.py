"""The comparison as tables: which rows there are, how numbers are written, and the table of the terminal."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from laplace_lora.evaluation.bootstrap import Interval
from laplace_lora.evaluation.comparison import Comparison
from laplace_lora.evaluation.names import METRICS, Metric, method_name, outcome

_WIDTH = 88
_NAME_WIDTH = 28
_LONGEST_NAME = 24  # of a method; longer ones are cut
_INTERVAL_WIDTH = 29


class Cell(NamedTuple):
    """One figure as text.

    Attributes:
        value: The number; ``n/a`` where undefined, ``inf`` where infinite.
        interval: ``[low, high]``; empty where there is none.
        outcome: Of a difference: ``better``, ``worse``, or empty where nothing measurable was found.
    """

    value: str
    interval: str
    outcome: str = ""


class Contrast(NamedTuple):
    """Two methods whose difference is shown.

    Attributes:
        after: Name of the method.
        before: Name of the method that is taken off.
        intervals: after - before, by metric.
    """

    after: str
    before: str
    intervals: dict[str, Interval]

    @property
    def title(self) -> str:
        """The difference as readers call it."""
        return f"{method_name(self.after)} - {method_name(self.before)}"


def number(value: float | None, sign: str = "") -> str:
    """Write a number with three decimals.

    Args:
        value: The number; None where undefined.
        sign: ``+`` to write the sign of positive numbers too.

    Returns:
        The number, ``inf``, ``-inf`` or ``n/a``.
    """
    # Adding zero turns a negative zero into a positive one.
    return "n/a" if value is None or math.isnan(value) else f"{value + 0.0:{sign}.3f}"


def ends(interval: Interval | None, sign: str = "") -> str:
    """Write the ends of an interval.

    Args:
        interval: The interval; None where the figure has none.
        sign: ``+`` to write the sign of positive numbers too.

    Returns:
        ``[low, high]``; empty where there is none.
    """
    if interval is None or interval.low is None or interval.high is None:
        return ""
    return f"[{number(interval.low, sign)}, {number(interval.high, sign)}]"


def metrics_shown(comparison: Comparison) -> list[Metric]:
    """List the metrics that the comparison holds; ``kl`` only where the truth is known."""
    known = comparison.methods[comparison.reference].kl is not None
    return [metric for metric in METRICS if known or metric.field != "kl"]


def value_cell(comparison: Comparison, method: str, metric: Metric) -> Cell:
    """Write one metric of one method.

    Args:
        comparison: The methods.
        method: Name of one.
        metric: What to write.

    Returns:
        The value and its interval.
    """
    interval = comparison.intervals[method].get(metric.field)
    return Cell(number(getattr(comparison.methods[method], metric.field)), ends(interval))


def contrasts(comparison: Comparison) -> list[Contrast]:
    """List the differences to show: every method against the reference, then the subject against all others.

    Args:
        comparison: The methods.

    Returns:
        The subject against the reference first; empty where the reference is alone.
    """
    reference, subject = comparison.reference, comparison.subject
    names = sorted(comparison.differences, key=lambda name: name != subject)
    return [
        *(Contrast(name, reference, comparison.differences[name]) for name in names),
        *(Contrast(subject, name, intervals) for name, intervals in comparison.rivals.items()),
    ]


def difference_cell(comparison: Comparison, contrast: Contrast, metric: Metric) -> Cell | None:
    """Write one difference.

    Args:
        comparison: The methods.
        contrast: Two of them.
        metric: What to write.

    Returns:
        The difference; None where the metric has none (the sampling floor).
    """
    interval = contrast.intervals.get(metric.field)
    if interval is None:
        return None
    return Cell(
        number(interval.estimate, "+"),
        ends(interval, "+"),
        outcome(comparison, interval, metric.less_is_better),
    )


def terminal_table(comparison: Comparison) -> str:
    """Write the comparison as plain text for a terminal.

    The corner says the number of examples. Two methods and their difference share a line; with more, or with long
    names, the values come first and the differences below.

    Args:
        comparison: The methods.

    Returns:
        Lines of at most 88 characters, without a final line break.
    """
    methods = [*comparison.methods]
    pairs = contrasts(comparison)
    widths = {name: max(8, len(short_name(name)) + 2) for name in methods}
    if len(methods) == 2 and sum(widths.values()) + _NAME_WIDTH + 3 + _INTERVAL_WIDTH + len("better") <= _WIDTH:
        return "\n".join(_one_table(comparison, [comparison.reference, comparison.subject], widths, pairs[0]))
    lines: list[str] = []
    for columns in _pages(methods, widths):
        lines += _one_table(comparison, columns, widths, None)
        lines.append("")
    for pair in pairs:
        title = f"{short_name(pair.after)} - {short_name(pair.before)}"
        # Two names of the greatest length and the words beside them would not fit one line.
        lines += [f"{title}: difference [95 % interval]", "-" * _WIDTH]
        for metric in metrics_shown(comparison):
            cell = difference_cell(comparison, pair, metric)
            if cell is not None:
                lines.append(f"{metric.name:<{_NAME_WIDTH}}{_written(cell):<{_INTERVAL_WIDTH}}{cell.outcome}".rstrip())
        lines.append("")
    return "\n".join(lines[:-1])


def _one_table(
    comparison: Comparison, methods: Sequence[str], widths: dict[str, int], pair: Contrast | None
) -> list[str]:
    """Write the values of some methods, and the difference of two beside them."""
    head = f"{f'n = {comparison.n:,}':<{_NAME_WIDTH}}" + "".join(
        f"{short_name(name):>{widths[name]}}" for name in methods
    )
    lines = [head + ("   difference  [95 % interval]" if pair else ""), "-" * _WIDTH]
    for metric in metrics_shown(comparison):
        values = "".join(f"{value_cell(comparison, name, metric).value:>{widths[name]}}" for name in methods)
        cell = difference_cell(comparison, pair, metric) if pair else None
        beside = f"   {_written(cell):<{_INTERVAL_WIDTH}}{cell.outcome}" if cell else ""
        lines.append(f"{metric.name:<{_NAME_WIDTH}}{values}{beside}".rstrip())
    return lines


def _pages(methods: Sequence[str], widths: dict[str, int]) -> list[list[str]]:
    """Share the columns out so that no line is too long."""
    pages: list[list[str]] = [[]]
    for name in methods:
        if pages[-1] and _NAME_WIDTH + sum(widths[other] for other in pages[-1]) + widths[name] > _WIDTH:
            pages.append([])
        pages[-1].append(name)
    return pages


def short_name(method: str) -> str:
    """Return what readers call a method, in few enough characters for a column."""
    name = method_name(method)
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."


def _written(cell: Cell) -> str:
    """Join a difference and its interval."""
    return f"{cell.value}  {cell.interval}".rstrip()
