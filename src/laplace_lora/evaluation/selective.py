"""Does confidence tell right from wrong? Error detection, risk against coverage, calibration in bins of equal counts.

Confidence is the largest probability of a row. All of this is about the *order* of the examples by confidence, so all
of it is computed from :mod:`laplace_lora.evaluation.ranking`, for the data and for resamples of them alike.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from laplace_lora.evaluation.metrics import ECE_BINS, FLOOR_DRAWS, FloatArray, check_probabilities
from laplace_lora.evaluation.outputs import ProbabilitiesLike
from laplace_lora.evaluation.ranking import Groups, groups, rank

# Elements of one block of simulated outcomes; small blocks stay in the cache.
_BLOCK_ELEMENTS = 2**17


class RiskCoverage(NamedTuple):
    """How often a model errs on the examples it is surest of.

    Attributes:
        coverage: (N,) share of examples answered, 1/N .. 1.
        risk: (N,) share of wrong predictions among these.
    """

    coverage: FloatArray
    risk: FloatArray


def error_auroc(probabilities: ProbabilitiesLike, labels: ArrayLike) -> float | None:
    """Chance that a right prediction is more confident than a wrong one; a tie counts one half.

    This is the area under the ROC curve of telling right predictions from wrong ones by their confidence (Hendrycks
    and Gimpel, ICLR 2017). It is blind to calibration: any rising function of the confidence has the same area.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.

    Returns:
        A number between 0 and 1, 0.5 for a confidence that says nothing; None where all predictions are right or all
        are wrong.
    """
    value = float(auroc_of(groups(rank(probabilities, labels)))[0])
    return None if np.isnan(value) else value


def aurc(probabilities: ProbabilitiesLike, labels: ArrayLike) -> float:
    """Area under the risk-coverage curve: the mean over k = 1 .. N of the error among the k most confident examples.

    (Geifman and El-Yaniv, NeurIPS 2017.) Where a tie is cut, its examples count with the tie's mean error, which is
    the expectation over all orders of the tied rows.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.

    Returns:
        A number between 0 and 1; less is better.
    """
    return float(aurc_of(groups(rank(probabilities, labels)))[0])


def ece_equal_mass(probabilities: ProbabilitiesLike, labels: ArrayLike, bins: int = ECE_BINS) -> float:
    """Calibration error in bins that hold equally many examples (Nguyen and O'Connor, EMNLP 2015).

    Bin b holds the ranks from b N / bins to (b + 1) N / bins by confidence. Where an edge cuts an example, or a group
    of examples of equal confidence, each side gets its share of the group: every bin holds exactly N / bins examples,
    and the order of the rows does not matter.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.
        bins: Number of bins.

    Returns:
        A number between 0 and 1.
    """
    return float(equal_mass_ece_of(groups(rank(probabilities, labels)), bins)[0])


def ece_equal_mass_floor(
    probabilities: ProbabilitiesLike, bins: int = ECE_BINS, draws: int = FLOOR_DRAWS, seed: int = 0
) -> float:
    """Mean :func:`ece_equal_mass` of a perfectly calibrated model with these confidences.

    As :func:`laplace_lora.evaluation.metrics.ece_floor`, for bins of equally many examples: each prediction is made
    right with exactly its confidence, ``draws`` times over.

    Args:
        probabilities: (N, K) probabilities.
        bins: Number of bins.
        draws: Number of simulated label sets.
        seed: Seed of the simulation (PCG64).

    Returns:
        A number between 0 and 1.
    """
    values = check_probabilities(probabilities)
    ranking = rank(values, np.zeros(len(values), dtype=np.int64))  # labels do not touch the order
    confidence = values.max(axis=1)[ranking.order]
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // len(values))
    errors = []
    for start in range(0, draws, block):
        wrong = (rng.random((min(block, draws - start), len(values))) >= confidence).astype(np.float64)
        errors.append(equal_mass_ece_of(groups(ranking._replace(wrong=wrong)), bins))
    return float(np.concatenate(errors).mean())


def risk_coverage(probabilities: ProbabilitiesLike, labels: ArrayLike) -> RiskCoverage:
    """Compute the curve whose mean is :func:`aurc`.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.

    Returns:
        N points, by rising coverage.
    """
    counted = groups(rank(probabilities, labels))
    total = int(counted.examples_so_far[0, -1])
    answered = np.arange(1, total + 1, dtype=np.float64)
    wrong = np.interp(answered, _from_zero(counted.examples_so_far[0]), _from_zero(counted.wrong_so_far[0]))
    return RiskCoverage(answered / total, wrong / answered)


def auroc_of(counted: Groups) -> FloatArray:
    """Compute :func:`error_auroc` of R data sets.

    Args:
        counted: Their groups.

    Returns:
        (R,) areas; NaN where a data set holds no wrong or no right prediction.
    """
    right = counted.examples - counted.wrong
    right_so_far = counted.examples_so_far - counted.wrong_so_far
    pairs_won = (counted.wrong * (right_so_far - 0.5 * right)).sum(axis=1)
    pairs = counted.wrong_so_far[:, -1] * right_so_far[:, -1]
    return np.divide(pairs_won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0.0)


def aurc_of(counted: Groups) -> FloatArray:
    """Compute :func:`aurc` of R data sets.

    Within a group of n examples, e of them wrong, that follows a examples with b wrong, the expected errors among the
    first k are b + (k - a) e / n. The sum of that over k, each divided by k, is e + (b - a e / n) (H(a + n) - H(a)),
    H the harmonic numbers.

    Args:
        counted: Their groups, of equally many examples in every data set.

    Returns:
        (R,) areas.
    """
    total = int(counted.examples_so_far[0, -1])
    harmonic = _from_zero(np.cumsum(1.0 / np.arange(1, total + 1)))
    rate = np.divide(counted.wrong, counted.examples, out=np.zeros_like(counted.wrong), where=counted.examples > 0.0)
    after = harmonic[counted.examples_so_far.astype(np.int64)]
    # What precedes a group is what precedes the group before it plus that group itself.
    before = np.concatenate([np.zeros((len(after), 1)), after[:, :-1]], axis=1)
    offset = (counted.wrong_so_far - counted.wrong) - rate * (counted.examples_so_far - counted.examples)
    return np.asarray((counted.wrong_so_far[:, -1] + (offset * (after - before)).sum(axis=1)) / total)


def equal_mass_ece_of(counted: Groups, bins: int = ECE_BINS) -> FloatArray:
    """Compute :func:`ece_equal_mass` of R data sets.

    Args:
        counted: Their groups.
        bins: Number of bins.

    Returns:
        (R,) errors.
    """
    promised_so_far = (counted.examples * counted.confidence).cumsum(axis=1)
    gap_so_far = counted.examples_so_far - counted.wrong_so_far - promised_so_far
    errors = np.empty(len(gap_so_far))
    for row, (examples, gap) in enumerate(zip(counted.examples_so_far, gap_so_far, strict=True)):
        edges = np.arange(bins + 1) * examples[-1] / bins
        errors[row] = np.abs(np.diff(np.interp(edges, _from_zero(examples), _from_zero(gap)))).sum() / examples[-1]
    return errors


def _from_zero(values: FloatArray) -> FloatArray:
    """Put a zero in front."""
    return np.concatenate([[0.0], values])
