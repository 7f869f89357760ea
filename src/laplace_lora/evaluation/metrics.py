"""How good predicted probabilities are: accuracy, log loss, Brier score, calibration error, divergence from the truth.

Every function takes *probabilities*, never logits, and refuses rows that do not sum to one: a soft-max applied once
too often, or not at all, is the commonest way to publish a wrong calibration figure. Of logits,
:class:`laplace_lora.evaluation.outputs.Logits` makes probabilities.

Shapes: N examples, K classes. Everything is computed in float64.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.outputs import FloatArray as FloatArray
from laplace_lora.evaluation.outputs import Logits, Probabilities, ProbabilitiesLike, require_logits
from laplace_lora.evaluation.outputs import check_probabilities as check_probabilities

IntArray = NDArray[np.int64]

#: Bins of the calibration error, as in Yang et al. (ICLR 2024) and Guo et al. (ICML 2017).
ECE_BINS = 15
#: Simulated label sets behind :func:`ece_floor` and :func:`calibrated_band`.
FLOOR_DRAWS = 1000

# Elements of one block of simulated outcomes: 32 MiB of float64.
_BLOCK_ELEMENTS = 2**22


class Reliability(NamedTuple):
    """A reliability diagram: what was promised and what came true, bin by bin.

    Attributes:
        edges: (bins + 1,) bin edges, from 0 to 1; bin b holds the confidences in (edges[b], edges[b + 1]].
        counts: (bins,) examples in each bin.
        confidence: (bins,) their mean confidence; NaN in an empty bin.
        accuracy: (bins,) their accuracy; NaN in an empty bin.
    """

    edges: FloatArray
    counts: IntArray
    confidence: FloatArray
    accuracy: FloatArray

    @property
    def ece(self) -> float:
        """The calibration error of these bins."""
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.where(self.counts > 0, self.counts * gaps, 0.0).sum() / self.counts.sum())


def softmax(logits: Logits) -> Probabilities:
    """Turn logits into probabilities; see :meth:`Logits.softmax`.

    Args:
        logits: (N, K) typed logits; a bare array, which may hold anything, is refused.

    Returns:
        (N, K) probabilities.
    """
    require_logits(logits, "softmax")
    return logits.softmax()


def check_labels(labels: ArrayLike, examples: int, classes: int) -> IntArray:
    """Return labels as int64, or refuse what does not fit the probabilities.

    Args:
        labels: (N,) class numbers.
        examples: N.
        classes: K.

    Returns:
        (N,) int64.

    Raises:
        LaplaceLoRAError: Wrong length, not whole numbers, or outside 0 .. K - 1.
    """
    values = np.asarray(labels)
    if values.shape != (examples,):
        raise LaplaceLoRAError(f"labels has shape {values.shape}; give one label for each of the {examples} rows.")
    if not np.issubdtype(values.dtype, np.integer):
        raise LaplaceLoRAError(f"labels are of type {values.dtype}; give class numbers as integers.")
    if values.min() < 0 or values.max() >= classes:
        raise LaplaceLoRAError(f"labels must lie in 0 .. {classes - 1}, but {values.min()} .. {values.max()} is given.")
    return values.astype(np.int64)


def _checked(probabilities: ProbabilitiesLike, labels: ArrayLike) -> tuple[FloatArray, IntArray]:
    """Check probabilities and labels together; see the two checks above."""
    values = check_probabilities(probabilities)
    return values, check_labels(labels, *values.shape)


def correct(probabilities: ProbabilitiesLike, labels: ArrayLike) -> FloatArray:
    """Whether the most probable class is the label (the first one, where several are equally probable).

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.

    Returns:
        (N,) 1.0 or 0.0.
    """
    values, numbers = _checked(probabilities, labels)
    return (values.argmax(axis=1) == numbers).astype(np.float64)


def log_losses(probabilities: ProbabilitiesLike, labels: ArrayLike) -> FloatArray:
    """Negative log-likelihood of every label, -log p_n[y_n], in nats; infinite where the label was called impossible.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.

    Returns:
        (N,) non-negative numbers.
    """
    values, numbers = _checked(probabilities, labels)
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(values[np.arange(len(numbers)), numbers]))


def brier_scores(probabilities: ProbabilitiesLike, labels: ArrayLike) -> FloatArray:
    """Squared distance to the label, sum_k (p_nk - [y_n = k])^2, between 0 and 2 (Brier, 1950).

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.

    Returns:
        (N,) numbers. With two classes they are twice the score of the positive class alone.
    """
    values, numbers = _checked(probabilities, labels)
    return np.asarray(((values - np.eye(values.shape[1])[numbers]) ** 2).sum(axis=1))


def kl_divergences(true_probabilities: ProbabilitiesLike, probabilities: ProbabilitiesLike) -> FloatArray:
    """Divergence from the truth, KL(p_true || p_model) = sum_k p_true log(p_true / p_model), in nats.

    Args:
        true_probabilities: (N, K) the probabilities that the labels were drawn from.
        probabilities: (N, K) the model's probabilities.

    Returns:
        (N,) non-negative numbers; infinite where the model called something possible impossible.

    Raises:
        LaplaceLoRAError: The shapes differ, or rows are no probabilities.
    """
    truth = check_probabilities(true_probabilities, "true_probabilities")
    model = check_probabilities(probabilities)
    if truth.shape != model.shape:
        raise LaplaceLoRAError(f"true_probabilities {truth.shape} and probabilities {model.shape} differ in shape.")
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = truth * (np.log(truth) - np.log(model))
    return np.asarray(np.where(truth > 0.0, terms, 0.0).sum(axis=1))


def entropies(probabilities: ProbabilitiesLike) -> FloatArray:
    """Entropy of every row, -sum_k p log p, in nats; 0 log 0 is 0.

    Args:
        probabilities: (N, K) probabilities.

    Returns:
        (N,) numbers between 0 and log K.
    """
    values = check_probabilities(probabilities)
    logarithms = np.log(values, out=np.zeros_like(values), where=values > 0.0)
    return np.asarray(0.0 - (values * logarithms).sum(axis=1))


def accuracy(probabilities: ProbabilitiesLike, labels: ArrayLike) -> float:
    """Share of examples whose most probable class is the label.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.

    Returns:
        A number between 0 and 1.
    """
    return float(correct(probabilities, labels).mean())


def nll(probabilities: ProbabilitiesLike, labels: ArrayLike) -> float:
    """Mean of :func:`log_losses`.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.

    Returns:
        Nats per example.
    """
    return float(log_losses(probabilities, labels).mean())


def brier(probabilities: ProbabilitiesLike, labels: ArrayLike) -> float:
    """Mean of :func:`brier_scores`.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.

    Returns:
        A number between 0 and 2.
    """
    return float(brier_scores(probabilities, labels).mean())


def kl(true_probabilities: ProbabilitiesLike, probabilities: ProbabilitiesLike) -> float:
    """Mean of :func:`kl_divergences`.

    Args:
        true_probabilities: (N, K) the probabilities that the labels were drawn from.
        probabilities: (N, K) the model's probabilities.

    Returns:
        Nats per example.
    """
    return float(kl_divergences(true_probabilities, probabilities).mean())


def bin_of(confidence: FloatArray, bins: int) -> IntArray:
    """Number the bin of each confidence.

    Args:
        confidence: (N,) numbers in [0, 1].
        bins: Number of equal bins, each closed on its right: (0, 1/bins], (1/bins, 2/bins], ...

    Returns:
        (N,) numbers in 0 .. bins - 1. A confidence of exactly one belongs to the last bin, zero to the first.
    """
    inner = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    # The largest entry of a rounded float32 row may exceed one by an ulp; digitize keeps it in the last bin.
    return np.digitize(confidence, inner, right=True).astype(np.int64)


def bin_gaps(probabilities: ProbabilitiesLike, labels: ArrayLike, bins: int = ECE_BINS) -> FloatArray:
    """Each example's share in the calibration error of its bin.

    ECE = sum_b | sum_n G_nb | / N with G_nb = (correct_n - confidence_n) [n in bin b]. The matrix is what a bootstrap
    needs: a resample with counts w has ECE sum_b | w^T G |_b / N.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.
        bins: Number of equal, right-closed bins.

    Returns:
        (N, bins) G.
    """
    values, numbers = _checked(probabilities, labels)
    confidence = values.max(axis=1)
    gaps = np.zeros((len(values), bins))
    gaps[np.arange(len(values)), bin_of(confidence, bins)] = correct(values, numbers) - confidence
    return gaps


def ece(probabilities: ProbabilitiesLike, labels: ArrayLike, bins: int = ECE_BINS) -> float:
    """Expected calibration error, sum_b (n_b / N) |accuracy_b - confidence_b| (Naeini et al., AAAI 2015).

    Confidence is the largest probability of a row. Bins are of equal width and closed on the right, and a confidence
    of one belongs to the last (Guo et al., ICML 2017; torchmetrics gives it a bin of its own).

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.
        bins: Number of bins.

    Returns:
        A number between 0 and 1. Even a perfect model does not reach 0 on finite data: see :func:`ece_floor`.
    """
    gaps = bin_gaps(probabilities, labels, bins)
    return float(np.abs(gaps.sum(axis=0)).sum() / len(gaps))


def reliability(probabilities: ProbabilitiesLike, labels: ArrayLike, bins: int = ECE_BINS) -> Reliability:
    """Sort predictions by confidence and compare with what came true.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.
        bins: Number of equal, right-closed bins.

    Returns:
        The diagram's numbers; its ``ece`` is :func:`ece`.
    """
    values, numbers = _checked(probabilities, labels)
    return binned(values.max(axis=1), correct(values, numbers), bins)


def binned(confidence: FloatArray, hits: FloatArray, bins: int = ECE_BINS) -> Reliability:
    """Sort predictions whose other classes are not held, such as tokens of a large vocabulary.

    Args:
        confidence: (N,) probability of the likeliest class.
        hits: (N,) 1.0 where it is the label, else 0.0.
        bins: Number of equal, right-closed bins.

    Returns:
        As :func:`reliability`.
    """
    index = bin_of(confidence, bins)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(index, weights=confidence, minlength=bins) / count
        mean_accuracy = np.bincount(index, weights=hits, minlength=bins) / count
    return Reliability(np.linspace(0.0, 1.0, bins + 1), count.astype(np.int64), mean_confidence, mean_accuracy)


def ece_floor(
    probabilities: ProbabilitiesLike, bins: int = ECE_BINS, draws: int = FLOOR_DRAWS, seed: int = 0, models: int = 1
) -> float:
    """The calibration error that sampling alone would produce.

    With n_b examples in a bin, the accuracy of even a perfectly calibrated model misses its confidence by about
    sqrt(p (1 - p) / n_b). This is the mean ECE of such a model: the confidences are kept, and each prediction is made
    right with exactly its confidence, ``draws`` times over. An ECE near this floor is as good as this many examples
    can show; and an over-confident model has a *low* floor, because it promises little scatter.

    Args:
        probabilities: (N, K) probabilities.
        bins: Number of equal, right-closed bins.
        draws: Number of simulated label sets; at 1000, the standard error is about one per cent of the result.
        seed: Seed of the simulation (PCG64).
        models: The rows are those of so many models on the same examples, one model after the other: all are right on
            an example, or wrong, as far as their confidences allow.

    Returns:
        A number between 0 and 1.
    """
    hits, promised, _ = _calibrated_hits(probabilities, bins, draws, seed, models)
    return float(np.abs(hits - promised).sum(axis=1).mean() / len(check_probabilities(probabilities)))


def calibrated_band(
    probabilities: ProbabilitiesLike,
    bins: int = ECE_BINS,
    level: float = 0.95,
    draws: int = FLOOR_DRAWS,
    seed: int = 0,
    models: int = 1,
) -> tuple[FloatArray, FloatArray]:
    """Where the accuracy of each bin would lie if the model were perfectly calibrated.

    Args:
        probabilities: (N, K) probabilities.
        bins: Number of equal, right-closed bins.
        level: Share of simulated label sets inside the band, for each bin by itself.
        draws: Number of simulated label sets.
        seed: Seed of the simulation (PCG64).
        models: See :func:`ece_floor`.

    Returns:
        (bins,) lower and (bins,) upper accuracies; NaN in an empty bin.
    """
    hits, _, count = _calibrated_hits(probabilities, bins, draws, seed, models)
    low, high = np.quantile(hits, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], axis=0)
    with np.errstate(invalid="ignore"):
        return low / count, high / count


def _calibrated_hits(
    probabilities: ProbabilitiesLike, bins: int, draws: int, seed: int, models: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Count right predictions per bin in simulated worlds where the model is calibrated.

    Args:
        probabilities: (N, K) probabilities.
        bins: Number of bins.
        draws: Number of simulated label sets.
        seed: Seed.
        models: How many models' rows these are; examples are drawn once for all of them.

    Returns:
        (draws, bins) right predictions, (bins,) their expectation and (bins,) examples.
    """
    confidence = check_probabilities(probabilities).max(axis=1)
    member = np.eye(bins)[bin_of(confidence, bins)]
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK_ELEMENTS // len(confidence))
    examples = len(confidence) // models
    hits = [
        (np.tile(rng.random((min(block, draws - start), examples)), models) < confidence).astype(np.float64) @ member
        for start in range(0, draws, block)
    ]
    return np.concatenate(hits), confidence @ member, member.sum(axis=0)
