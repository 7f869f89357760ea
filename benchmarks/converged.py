"""E softmax(f) over Gaussian logits, converged: the reference that the library's integrators are measured against.

It shares no code with them: NumPy and SciPy alone, one example at a time, and no thought of time. For each class k the
differences d_j = f_k - f_j are split by generalised least squares into a common part and the rest, d = w 1 + e with
w = 1^T D^-1 d / 1^T D^-1 1 independent of e, so that

    p_k = E_e E_w sigmoid(w - logsumexp(-e)) = E_e g(-logsumexp(-e), s_w),    g(m, s) = E sigmoid(m + s Z).

g is a trapezoid, tabulated for the one s_w that a class has; e goes by scrambled Sobol nets of 2^17 points, in as many
dimensions as its covariance has. What several scrambles differ by bounds the error.
"""

import functools

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, special, stats
from scipy.stats import qmc

Array = NDArray[np.float64]

POINTS_LOG2, SCRAMBLES = 17, 4
# Eigenvalues below this share of the largest are rounding.
_RANK = 1e-11


def converged_softmax(
    mean: Array, covariance: Array, points_log2: int = POINTS_LOG2, scrambles: int = SCRAMBLES
) -> tuple[Array, Array]:
    """Average softmax(f) over f ~ N(mean, covariance).

    Args:
        mean: (K,) logits.
        covariance: (K, K) positive semi-definite, of any rank.
        points_log2: Binary logarithm of the number of points of a net.
        scrambles: Nets, each scrambled by a seed of its own.

    Returns:
        (K,) probabilities, and (K,) standard errors, from the spread of the nets.
    """
    found = np.array([_one_net(mean, covariance, points_log2, seed) for seed in range(scrambles)])
    error = found.std(axis=0, ddof=1) / np.sqrt(scrambles) if scrambles > 1 else np.full(len(mean), np.nan)
    return found.mean(axis=0), error


def mean_sigmoid(deviation: float) -> interpolate.CubicSpline:
    """Tabulate g(m, s) = E sigmoid(m + s Z) for one s.

    Args:
        deviation: s.

    Returns:
        A function of m; arguments beyond its ends, where g is 0 or 1 to 1e-16, are to be clipped.
    """
    # The trapezoid's error is about exp(-2 pi^2 / (h s)) for the sigmoid's poles at i pi, beside the normal's own.
    step = min(0.1, 0.5 / max(deviation, 1e-9))
    z = np.arange(-np.ceil(9.0 / step), np.ceil(9.0 / step) + 1) * step
    weights = stats.norm.pdf(z) * step
    reach = 9.0 * deviation + 40.0
    spacing = 0.04 * np.hypot(1.0, 0.5 * deviation)
    nodes = np.linspace(-reach, reach, 2 * int(np.ceil(reach / spacing)) + 1)
    values = np.concatenate(
        [special.expit(part[:, None] + deviation * z) @ weights for part in np.array_split(nodes, 8)]
    )
    return interpolate.CubicSpline(nodes, values)


def _one_net(mean: Array, covariance: Array, points_log2: int, seed: int) -> Array:
    classes = len(mean)
    probabilities = np.empty(classes)
    for own in range(classes):
        others = np.delete(np.arange(classes), own)
        contrast = np.zeros((classes - 1, classes))
        contrast[:, own] = 1.0
        contrast[np.arange(classes - 1), others] -= 1.0
        offset, spread = contrast @ mean, contrast @ covariance @ contrast.T
        common = _common_variance(spread)
        g = mean_sigmoid(np.sqrt(common))
        root = _root(spread - common, float(np.trace(spread)))
        e = offset[None] if root.shape[1] == 0 else offset + _normal_net(root.shape[1], points_log2, seed) @ root.T
        least = e.min(axis=1, keepdims=True)
        argument = least[:, 0] - np.log(np.exp(least - e).sum(axis=1))
        probabilities[own] = g(argument.clip(g.x[0], g.x[-1])).mean()
    return probabilities / probabilities.sum()


@functools.lru_cache(maxsize=8)
def _normal_net(dimensions: int, points_log2: int, seed: int) -> Array:
    sobol = qmc.Sobol(dimensions, scramble=True, rng=np.random.default_rng(seed))
    return special.ndtri(sobol.random_base2(points_log2).clip(1e-15, 1.0 - 1e-15))


def _common_variance(spread: Array) -> float:
    """Return 1 / (1^T D^-1 1), the most that can be taken out of D as s^2 11^T; 0 where 1 is not in D's range."""
    variances, axes = np.linalg.eigh(spread)
    if variances[-1] <= 0.0:
        return 0.0
    kept = variances > _RANK * variances[-1]
    share = axes.T @ np.ones(len(spread))
    if np.square(share[~kept]).sum() > 1e-9 * len(spread):
        return 0.0
    return float(1.0 / (np.square(share[kept]) / variances[kept]).sum())


def _root(covariance: Array, scale: float) -> Array:
    """Return a root with as many columns as the covariance has dimensions, the largest variance first."""
    variances, axes = np.linalg.eigh(0.5 * (covariance + covariance.T))
    kept = variances > _RANK * scale
    return (axes[:, kept] * np.sqrt(variances[kept]))[:, ::-1]
