"""Gaussian predictions of real outputs: log score, error, and how often intervals hold."""

import math
from statistics import NormalDist

import numpy as np

from laplace_lora.evaluation.figures import Measure
from laplace_lora.evaluation.metrics import FloatArray

#: Nominal coverage of the intervals that are checked.
LEVELS = (0.5, 0.9, 0.95)
DESCRIPTIONS = {
    "nll": "negative log-likelihood (nats)",
    "rmse": "root mean squared error",
    "coverage_50": "share of targets in the 50 % interval",
    "coverage_90": "share of targets in the 90 % interval",
    "coverage_95": "share of targets in the 95 % interval",
    "sd": "mean predictive standard deviation",
}


def half_width(level: float) -> float:
    """Return the half-width of a central interval of the standard normal distribution.

    Args:
        level: Its probability.

    Returns:
        In standard deviations.
    """
    return NormalDist().inv_cdf(0.5 + 0.5 * level)


def gaussian_measures(mean: FloatArray, variance: FloatArray, targets: FloatArray) -> dict[str, Measure | float]:
    """Measure Gaussian predictions.

    Args:
        mean: (N,) predicted.
        variance: (N,) predictive variance, the noise included.
        targets: (N,) observed.

    Returns:
        The metrics of ``DESCRIPTIONS``.
    """
    ones = np.ones(len(targets))
    squared = (targets - mean) ** 2
    measures: dict[str, Measure | float] = {
        "nll": Measure(0.5 * (np.log(2.0 * math.pi * variance) + squared / variance), ones),
        "rmse": Measure(squared, ones, root=True),
    }
    for level in LEVELS:
        held = (squared <= half_width(level) ** 2 * variance).astype(np.float64)
        measures[f"coverage_{round(100 * level)}"] = Measure(held, ones)
    return measures | {"sd": Measure(np.sqrt(variance), ones)}


def coverage_curve(mean: FloatArray, variance: FloatArray, targets: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compare nominal and observed coverage of central intervals.

    Args:
        mean: (N,) predicted.
        variance: (N,) predictive variance, the noise included.
        targets: (N,) observed.

    Returns:
        Nominal and observed shares.
    """
    nominal = np.linspace(0.05, 0.95, 19)
    scaled = np.abs(targets - mean) / np.sqrt(variance)
    return nominal, np.array([float((scaled <= half_width(level)).mean()) for level in nominal])
