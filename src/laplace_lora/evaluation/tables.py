"""The comparison as a table: which rows there are, how they are written, and the table of the terminal."""

from typing import NamedTuple

from laplace_lora.evaluation.comparison import Comparison


class Row(NamedTuple):
    """One line of the table, as text.

    Attributes:
        name: What is measured.
        before: The first method's value.
        after: The second method's value.
        difference: after - before with its interval; empty where none is defined.
        outcome: ``better`` or ``worse`` where the interval excludes zero, else empty.
        better: Which direction is better, in words.
    """

    name: str
    before: str
    after: str
    difference: str
    outcome: str
    better: str


# Name of the field, what readers call it, and whether less is better.
_METRICS = (
    ("nll", "Negative log-likelihood", True),
    ("kl", "KL divergence to the truth", True),
    ("brier", "Brier score", True),
    ("ece", "Calibration error (ECE)", True),
    ("ece_floor", "    its sampling floor", None),
    ("accuracy", "Accuracy", False),
)


def rows(comparison: Comparison) -> list[Row]:
    """Write out every metric that the comparison holds.

    Args:
        comparison: The two methods.

    Returns:
        One row per metric.
    """
    lines = []
    for field, name, less_is_better in _METRICS:
        before, after = getattr(comparison.before, field), getattr(comparison.after, field)
        if before is None or after is None:
            continue
        difference, outcome = "", ""
        if field in comparison.difference:
            interval = comparison.difference[field]
            difference = f"{interval.estimate:+.3f}  [{interval.low:+.3f}, {interval.high:+.3f}]"
            if interval.below_zero or interval.above_zero:
                outcome = "better" if interval.below_zero == less_is_better else "worse"
        better = {True: "lower is better", False: "higher is better", None: "what chance alone would give"}[
            less_is_better
        ]
        lines.append(Row(name, f"{before:.3f}", f"{after:.3f}", difference, outcome, better))
    return lines


def terminal_table(comparison: Comparison) -> str:
    """Write the comparison as plain text for a terminal.

    Args:
        comparison: The two methods.

    Returns:
        Lines of at most 88 characters, without a final line break.
    """
    head = f"{'':<28}{'MAP':>8}{'Laplace':>9}   {'difference  [95 % interval]':<29}"
    lines = [head.rstrip(), "-" * 88]
    lines += [
        f"{row.name:<28}{row.before:>8}{row.after:>9}   {row.difference:<29}{row.outcome}".rstrip()
        for row in rows(comparison)
    ]
    return "\n".join(lines)
