"""Figures of methods whose predictions are no classes: means over examples, with intervals and differences."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.bootstrap import Interval, finite_or_none, percentile_interval, resampling_counts
from laplace_lora.evaluation.metrics import FloatArray

RESAMPLES = 1000
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Measure:
    """One metric of one method: ``f(sum of values / sum of weights)`` over examples.

    Attributes:
        values: (N,) what is added up.
        weights: (N,) what it is divided by: 1 for a mean over examples, the number of tokens for one over tokens.
        root: Whether the square root of the mean is shown.
    """

    values: FloatArray
    weights: FloatArray
    root: bool = False

    def of(self, counts: FloatArray) -> FloatArray:
        """Return the metric of resamples.

        Args:
            counts: (resamples, N) how often each example occurs.

        Returns:
            (resamples,) values, NaN where nothing is left.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = (counts @ self.values) / (counts @ self.weights)
        return np.sqrt(mean) if self.root else mean


@dataclasses.dataclass(frozen=True)
class Figures:
    """Metrics of several methods on the same examples. Intervals are 95% percentile bootstrap intervals over examples.

    Attributes:
        n: Number of examples.
        methods: For each method the interval of each metric; without ends for plain numbers.
        differences: For each method but the first, method - first.
    """

    n: int
    methods: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values.

        Returns:
            ``n``; ``methods``: for each its metrics and their ``intervals`` (low, high); ``differences``.
        """
        return {
            "n": self.n,
            "methods": {
                name: {metric: finite_or_none(value.estimate) for metric, value in metrics.items()}
                | {
                    "intervals": {
                        metric: {"low": finite_or_none(value.low), "high": finite_or_none(value.high)}
                        for metric, value in metrics.items()
                        if value.low is not None
                    }
                }
                for name, metrics in self.methods.items()
            },
            "differences": {
                name: {metric: value.to_dict() for metric, value in metrics.items()}
                for name, metrics in self.differences.items()
            },
        }


def measure(methods: Mapping[str, Mapping[str, Measure | float]]) -> Figures:
    """Compute metrics with intervals and paired differences.

    Args:
        methods: For each method its metrics; plain numbers get no interval. The first method is the reference.

    Returns:
        The figures.

    Raises:
        LaplaceLoRAError: There is nothing to measure.
    """
    measured = {
        (name, metric): value
        for name, metrics in methods.items()
        for metric, value in metrics.items()
        if isinstance(value, Measure)
    }
    sizes = {len(value.values) for value in measured.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise LaplaceLoRAError("the metrics are of no examples, or of different ones; give arrays of one length.")
    (count,) = sizes
    whole = np.ones((1, count))
    estimates = {key: float(value.of(whole)[0]) for key, value in measured.items()}
    blocks = [
        {key: value.of(counts) for key, value in measured.items()}
        for counts in resampling_counts(count, RESAMPLES, _SEED)
    ]
    sampled = {key: np.concatenate([block[key] for block in blocks]) for key in measured}
    reference = next(iter(methods))
    scores: dict[str, dict[str, Interval]] = {}
    differences: dict[str, dict[str, Interval]] = {}
    for name, metrics in methods.items():
        scores[name] = {
            metric: percentile_interval(estimates[name, metric], sampled[name, metric])
            if isinstance(value, Measure)
            else Interval(float(value), None, None)
            for metric, value in metrics.items()
        }
        if name != reference:
            differences[name] = {
                metric: percentile_interval(
                    estimates[name, metric] - estimates[reference, metric],
                    sampled[name, metric] - sampled[reference, metric],
                )
                for metric, value in metrics.items()
                if isinstance(value, Measure) and (reference, metric) in measured
            }
    return Figures(count, scores, differences)


def figures_table(figures: Figures, descriptions: Mapping[str, str]) -> str:
    """Write the figures for a terminal.

    Args:
        figures: What was measured.
        descriptions: Words for each metric, in the order of the table.

    Returns:
        A table, one line per metric.
    """
    names = list(figures.methods)
    width = max(len(text) for text in descriptions.values())
    lines = [f"{f'n = {figures.n:,}':<{width}}" + "".join(f"  {name:>28}" for name in names)]
    for metric, text in descriptions.items():
        cells = "".join(f"  {written(figures.methods[name].get(metric)):>28}" for name in names)
        lines.append(f"{text:<{width}}{cells}")
    for name, metrics in figures.differences.items():
        lines += ["", f"{name} less {names[0]}:"]
        lines += [
            f"  {descriptions[metric]}: {written(metrics[metric])}" for metric in descriptions if metric in metrics
        ]
    return "\n".join(lines)


def written(interval: Interval | None) -> str:
    """Write a figure with its interval.

    Args:
        interval: The figure; None where a method has none.

    Returns:
        ``0.123 [0.100, 0.150]``.
    """
    if interval is None or interval.estimate is None:
        return ""
    if interval.low is None or interval.high is None:
        return _number(interval.estimate)
    return f"{_number(interval.estimate)} [{_number(interval.low)}, {_number(interval.high)}]"


def _number(value: float) -> str:
    return f"{value:.3f}" if value == 0.0 or 0.01 <= abs(value) < 1000.0 else f"{value:.3g}"
