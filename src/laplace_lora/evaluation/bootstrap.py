"""Paired bootstrap intervals: is a difference between two methods more than the luck of this test set?

Both methods are scored on the same examples, so the *examples* are resampled and both scores recomputed on each
resample (Efron and Tibshirani, 1993, chapter 16; percentile interval). What varies between training runs is not in
these intervals: for that, look at several seeds.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laplace_lora.errors import LaplaceLoRAError

FloatArray = NDArray[np.float64]

RESAMPLES = 10_000
# Elements of one block of resampling counts: 32 MiB of float64.
_BLOCK_ELEMENTS = 2**22


class Interval(NamedTuple):
    """An estimate with its bootstrap interval.

    Attributes:
        estimate: The value on the data itself.
        low: Lower end.
        high: Upper end.
    """

    estimate: float
    low: float
    high: float

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval is negative."""
        return self.high < 0.0

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is positive."""
        return self.low > 0.0


def mean_difference(
    after: ArrayLike, before: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Interval of mean(after) - mean(before) over the same examples.

    Args:
        after: (N,) score of each example under the new method.
        before: (N,) score of the same examples under the old one.
        level: Coverage of the interval.
        resamples: Number of resampled data sets.
        seed: Seed of the resampling (PCG64).

    Returns:
        The difference and its interval, in the units of the scores.

    Raises:
        LaplaceLoRAError: The arrays differ in shape, are empty, or hold values that are not finite.
    """
    difference = np.subtract(*_paired(after, before, ndim=1))
    sampled = [counts @ difference for counts in _resampling_counts(len(difference), resamples, seed)]
    return _interval(float(difference.mean()), np.concatenate(sampled) / len(difference), level)


def ece_difference(
    after_gaps: ArrayLike, before_gaps: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Interval of ECE(after) - ECE(before), from each example's share in its bin's gap.

    The error of a resample is larger than that of the data (it carries the sampling noise twice), for both methods
    alike; read the interval as the direction of the difference rather than its exact size.

    Args:
        after_gaps: (N, bins) :func:`laplace_lora.evaluation.metrics.bin_gaps` of the new method.
        before_gaps: (N, bins) the same of the old one.
        level: Coverage of the interval.
        resamples: Number of resampled data sets.
        seed: Seed of the resampling (PCG64).

    Returns:
        The difference and its interval.

    Raises:
        LaplaceLoRAError: The arrays differ in shape, are empty, or hold values that are not finite.
    """
    after, before = _paired(after_gaps, before_gaps, ndim=2)
    sampled = [
        np.abs(counts @ after).sum(axis=1) - np.abs(counts @ before).sum(axis=1)
        for counts in _resampling_counts(len(after), resamples, seed)
    ]
    estimate = float(np.abs(after.sum(axis=0)).sum() - np.abs(before.sum(axis=0)).sum()) / len(after)
    return _interval(estimate, np.concatenate(sampled) / len(after), level)


def _paired(after: ArrayLike, before: ArrayLike, ndim: int) -> tuple[FloatArray, FloatArray]:
    """Return both as float64 arrays of one shape.

    Args:
        after: The new method's values, one row per example.
        before: The old method's values.
        ndim: Number of axes.

    Returns:
        The two arrays.

    Raises:
        LaplaceLoRAError: The arrays differ in shape, are empty, or hold values that are not finite.
    """
    new, old = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    if new.shape != old.shape or new.ndim != ndim or new.size == 0:
        raise LaplaceLoRAError(
            f"scores of shapes {new.shape} and {old.shape} cannot be paired; score the same examples."
        )
    if not (np.isfinite(new).all() and np.isfinite(old).all()):
        raise LaplaceLoRAError(
            "a score is not finite (a label was given probability zero?), so no interval exists; "
            "compute probabilities in float64 from the logits."
        )
    return new, old


def _resampling_counts(examples: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """Yield how often each example occurs in each resample, block by block.

    Args:
        examples: N.
        resamples: Total number of resamples.
        seed: Seed.

    Yields:
        (block, N) counts; each row sums to N.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // examples)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(0, examples, (rows, examples)) + examples * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * examples).reshape(rows, examples).astype(np.float64)


def _interval(estimate: float, sampled: FloatArray, level: float) -> Interval:
    """Cut the tails off.

    Args:
        estimate: Value on the data.
        sampled: (resamples,) values on the resamples.
        level: Coverage.

    Returns:
        The interval.
    """
    low, high = np.quantile(sampled, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(estimate, float(low), float(high))
