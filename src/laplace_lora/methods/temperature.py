"""Temperature scaling (Guo et al., "On calibration of modern neural networks", ICML 2017)."""

import numpy as np
from numpy.typing import ArrayLike

from laplace_lora.errors import LaplaceLoRAError

#: Temperatures beyond say that the validation labels follow the logits perfectly, or not at all.
COLDEST, HOTTEST = 0.05, 100.0
_STEPS = 200


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Find the temperature T that minimises the negative log-likelihood of softmax(logits / T).

    The loss is convex in 1 / T, so that bisection of its derivative finds the only minimum:
    d/d(1/T) = mean over examples of E_softmax[f] - f_y.

    Args:
        logits: (N, K) of the trained adapter on held-out examples.
        labels: (N,) class indices.

    Returns:
        T, between 0.05 and 100; above 1 where the adapter is over-confident.

    Raises:
        LaplaceLoRAError: The arrays do not fit together, or a logit is not finite.
    """
    values, index = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or index.shape != values.shape[:1] or values.size == 0 or not np.isfinite(values).all():
        raise LaplaceLoRAError(
            f"logits {values.shape} and labels {index.shape} do not fit together, or are not finite; give one row of "
            "logits and one class index per example."
        )
    values = values - values[np.arange(len(index)), index][:, None]

    def slope(inverse: float) -> float:
        scaled = inverse * values
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return float(((weights * values).sum(axis=1) / weights.sum(axis=1)).mean())

    low, high = 1.0 / HOTTEST, 1.0 / COLDEST
    if slope(low) >= 0.0:
        return HOTTEST
    if slope(high) <= 0.0:
        return COLDEST
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return 1.0 / (0.5 * (low + high))
