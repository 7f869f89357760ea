"""Score two sets of predictions for the same examples side by side, with intervals of the differences."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from laplace_lora.evaluation import bootstrap, metrics
from laplace_lora.evaluation.bootstrap import Interval
from laplace_lora.evaluation.metrics import FloatArray, IntArray


@dataclasses.dataclass(frozen=True)
class Scores:
    """All metrics of one method on one data set.

    Attributes:
        accuracy: Share of right predictions.
        nll: Mean negative log-likelihood, nats per example.
        brier: Mean squared distance to the label, 0 to 2.
        ece: Expected calibration error, 15 equal bins.
        ece_floor: The calibration error that a perfectly calibrated model with these confidences would show.
        confidence: Mean probability of the predicted class.
        kl: Mean divergence from the true probabilities in nats, where these are known.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    ece_floor: float
    confidence: float
    kl: float | None = None

    def to_dict(self) -> dict[str, float]:
        """Return the scores as plain JSON values.

        Returns:
            One number per metric; ``kl`` is left out where the truth is unknown.
        """
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two methods on the same examples: ``before`` (MAP) and ``after`` (Laplace).

    Attributes:
        n: Number of examples.
        before: Scores of the first method.
        after: Scores of the second.
        difference: after - before with its 95% paired bootstrap interval, for ``nll``, ``brier``, ``ece``,
            ``accuracy`` and, where the truth is known, ``kl``.
    """

    n: int
    before: Scores
    after: Scores
    difference: dict[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values.

        Returns:
            ``n``, ``methods`` (``map`` and ``laplace``) and ``difference`` (laplace - map: estimate, low, high).
        """
        return {
            "n": self.n,
            "methods": {"map": self.before.to_dict(), "laplace": self.after.to_dict()},
            "difference": {name: interval._asdict() for name, interval in self.difference.items()},
        }


def score(probabilities: ArrayLike, labels: ArrayLike, true_probabilities: ArrayLike | None = None) -> Scores:
    """Compute every metric.

    Args:
        probabilities: (N, K) the method's probabilities.
        labels: (N,) class numbers.
        true_probabilities: (N, K) what the labels were drawn from, where it is known.

    Returns:
        The scores.
    """
    values = metrics.check_probabilities(probabilities)
    return Scores(
        accuracy=metrics.accuracy(values, labels),
        nll=metrics.nll(values, labels),
        brier=metrics.brier(values, labels),
        ece=metrics.ece(values, labels),
        ece_floor=metrics.ece_floor(values),
        confidence=float(values.max(axis=1).mean()),
        kl=None if true_probabilities is None else metrics.kl(true_probabilities, values),
    )


def compare(
    before: ArrayLike,
    after: ArrayLike,
    labels: ArrayLike,
    true_probabilities: ArrayLike | None = None,
    *,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Score two methods on the same examples and bound their differences.

    Args:
        before: (N, K) probabilities of the first method.
        after: (N, K) probabilities of the second.
        labels: (N,) class numbers.
        true_probabilities: (N, K) what the labels were drawn from, where it is known.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        The comparison.
    """
    old, new = metrics.check_probabilities(before), metrics.check_probabilities(after)
    numbers: IntArray = metrics.check_labels(labels, *new.shape)

    def means(new_scores: FloatArray, old_scores: FloatArray) -> Interval:
        return bootstrap.mean_difference(new_scores, old_scores, resamples=resamples, seed=seed)

    difference = {
        "nll": means(metrics.log_losses(new, numbers), metrics.log_losses(old, numbers)),
        "brier": means(metrics.brier_scores(new, numbers), metrics.brier_scores(old, numbers)),
        "ece": bootstrap.ece_difference(
            metrics.bin_gaps(new, numbers), metrics.bin_gaps(old, numbers), resamples=resamples, seed=seed
        ),
        "accuracy": means(metrics.correct(new, numbers), metrics.correct(old, numbers)),
    }
    if true_probabilities is not None:
        truth = np.asarray(true_probabilities, dtype=np.float64)
        difference["kl"] = means(metrics.kl_divergences(truth, new), metrics.kl_divergences(truth, old))
    return Comparison(
        n=len(numbers),
        before=score(old, numbers, true_probabilities),
        after=score(new, numbers, true_probabilities),
        difference=difference,
    )
