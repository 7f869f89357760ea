"""What readers call methods and metrics, which direction is better, and what counts as a measurable difference."""

from typing import NamedTuple

from laplace_lora.evaluation.bootstrap import Interval
from laplace_lora.evaluation.comparison import FEWEST_TO_JUDGE, Comparison

_METHODS = {
    "map": ("MAP", "the trained adapter as it is"),
    "laplace": ("Laplace", "the posterior around the adapter"),
    "temperature": ("Temperature", "the adapter with one fitted temperature"),
}


class Metric(NamedTuple):
    """One line of the tables.

    Attributes:
        field: Name of the field of ``Scores``.
        name: What readers call it; begins with blanks where it explains the line above.
        less_is_better: None where neither direction is.
        note: What it is, in a few words.
    """

    field: str
    name: str
    less_is_better: bool | None
    note: str


METRICS = (
    Metric("nll", "Negative log-likelihood", True, "nats per example"),
    Metric("kl", "KL divergence to the truth", True, "nats per example"),
    Metric("brier", "Brier score", True, "0 to 2"),
    Metric("ece", "Calibration error (ECE)", True, "15 bins of equal width"),
    Metric("ece_floor", "    its sampling floor", None, "what chance alone would give"),
    Metric("ece_equal_mass", "ECE, bins of equal count", True, "15 bins, as many examples in each"),
    Metric("ece_equal_mass_floor", "    its sampling floor", None, "what chance alone would give"),
    Metric("accuracy", "Accuracy", False, "share of right predictions"),
    Metric("auroc", "Error detection (AUROC)", False, "chance that right is surer than wrong; 0.5 is none"),
    Metric("aurc", "Risk-coverage area (AURC)", True, "mean error over all coverages, surest first"),
)


def method_name(method: str) -> str:
    """Return what readers call a method: a name of its own for the known ones, else the name given."""
    return _METHODS[method][0] if method in _METHODS else method


def method_description(method: str) -> str:
    """Return what a known method is, in a few words; empty for any other."""
    return _METHODS[method][1] if method in _METHODS else ""


def outcome(comparison: Comparison, difference: Interval, less_is_better: bool | None) -> str:
    """Say whether a difference is measurable, and in whose favour.

    Args:
        comparison: Where it is from.
        difference: After - before.
        less_is_better: The metric's direction.

    Returns:
        ``better`` or ``worse``; empty where the interval holds zero, there is none, or the examples are too few for
        an interval to be trusted.
    """
    excludes_zero = difference.below_zero or difference.above_zero
    if comparison.n < FEWEST_TO_JUDGE or less_is_better is None or not excludes_zero:
        return ""
    return "better" if difference.below_zero == less_is_better else "worse"
