"""Score several methods on the same examples, with an interval of every figure and of every difference."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import bootstrap, metrics, selective
from laplace_lora.evaluation.bootstrap import Interval, finite_or_none, percentile_interval
from laplace_lora.evaluation.metrics import FloatArray, IntArray
from laplace_lora.evaluation.outputs import ProbabilitiesLike
from laplace_lora.evaluation.resampled import resampled_figures

#: What differences are computed of; ``kl`` where the truth is known.
COMPARED = ("nll", "kl", "brier", "ece", "ece_equal_mass", "accuracy", "auroc", "aurc")
#: Below this many examples a percentile interval is too narrow to call a difference better or worse.
FEWEST_TO_JUDGE = 30


@dataclasses.dataclass(frozen=True)
class Scores:
    """All metrics of one method on one data set.

    Attributes:
        accuracy: Share of right predictions.
        nll: Mean negative log-likelihood, nats per example; infinite where a label was given probability zero.
        brier: Mean squared distance to the label, 0 to 2.
        ece: Expected calibration error, 15 bins of equal width.
        ece_equal_mass: The same, 15 bins of equally many examples.
        ece_floor: The ``ece`` that a perfectly calibrated model with these confidences would show.
        ece_equal_mass_floor: The ``ece_equal_mass`` that it would show.
        confidence: Mean probability of the predicted class.
        auroc: Chance that a right prediction is more confident than a wrong one; None where all are right or wrong.
        aurc: Mean error rate over all coverages, the most confident examples first.
        impossible: Number of labels that were given probability zero.
        kl: Mean divergence from the true probabilities in nats, where these are known.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    ece_equal_mass: float
    ece_floor: float
    ece_equal_mass_floor: float
    confidence: float
    auroc: float | None
    aurc: float
    impossible: int
    kl: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the scores as plain JSON values.

        Returns:
            One number per metric. None for what is undefined or infinite, which JSON cannot hold (an infinite ``nll``
            shows in ``impossible``); ``kl`` is left out where the truth is unknown.
        """
        values = {name: finite_or_none(value) for name, value in dataclasses.asdict(self).items()}
        if self.kl is None:
            del values["kl"]
        return values


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Methods side by side on the same examples. All intervals are 95% percentile bootstrap intervals.

    Attributes:
        n: Number of examples.
        reference: Name of the method that the others are compared with.
        subject: Name of the method that the verdict is about; the reference itself where it is alone.
        methods: Scores of each method.
        intervals: For each method the interval of each metric (``impossible`` and the floors have none).
        differences: For each method but the reference, method - reference, for each metric in ``COMPARED``.
        rivals: For each method that is neither subject nor reference, subject - method, likewise.
    """

    n: int
    reference: str
    subject: str
    methods: dict[str, Scores]
    intervals: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]
    rivals: dict[str, dict[str, Interval]]

    @property
    def difference(self) -> dict[str, Interval]:
        """Subject - reference for each metric; empty where the reference is alone."""
        return self.differences.get(self.subject, {})

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values.

        Returns:
            ``n``, ``reference``, ``subject``; ``methods`` (for each its scores and ``intervals``: low, high);
            ``difference`` (subject - reference: estimate, low, high), ``differences`` (the same for every method),
            ``rivals`` (subject - other). None stands for what is undefined or infinite.
        """
        methods: dict[str, Any] = {}
        for name, scores in self.methods.items():
            ends = {
                field: {"low": interval.low, "high": interval.high} for field, interval in self.intervals[name].items()
            }
            methods[name] = {**scores.to_dict(), "intervals": ends}
        return {
            "n": self.n,
            "reference": self.reference,
            "subject": self.subject,
            "methods": methods,
            "difference": _plain(self.difference),
            "differences": {name: _plain(intervals) for name, intervals in self.differences.items()},
            "rivals": {name: _plain(intervals) for name, intervals in self.rivals.items()},
        }


def score(probabilities: ProbabilitiesLike, labels: ArrayLike, truth: ProbabilitiesLike | None = None) -> Scores:
    """Compute every metric.

    Args:
        probabilities: (N, K) the method's probabilities.
        labels: (N,) class numbers.
        truth: (N, K) the probabilities that the labels were drawn from, where they are known.

    Returns:
        The scores.
    """
    values = metrics.check_probabilities(probabilities)
    losses = metrics.log_losses(values, labels)
    return Scores(
        accuracy=metrics.accuracy(values, labels),
        nll=float(losses.mean()),
        brier=metrics.brier(values, labels),
        ece=metrics.ece(values, labels),
        ece_equal_mass=selective.ece_equal_mass(values, labels),
        ece_floor=metrics.ece_floor(values),
        ece_equal_mass_floor=selective.ece_equal_mass_floor(values),
        confidence=float(values.max(axis=1).mean()),
        auroc=selective.error_auroc(values, labels),
        aurc=selective.aurc(values, labels),
        impossible=int(np.isinf(losses).sum()),
        kl=None if truth is None else metrics.kl(truth, values),
    )


def compare(
    methods: Mapping[str, ProbabilitiesLike],
    labels: ArrayLike,
    truth: ProbabilitiesLike | None = None,
    reference: str = "map",
    *,
    subject: str | None = None,
    resamples: int = bootstrap.RESAMPLES,
    rank_resamples: int = bootstrap.RANK_RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Score methods on the same examples and bound every figure and every difference.

    Args:
        methods: (N, K) probabilities of each method, by name: ``map``, ``temperature``, ``laplace``, or any other.
        labels: (N,) class numbers.
        truth: (N, K) the probabilities that the labels were drawn from, where they are known.
        reference: Name of the method that the others are compared with.
        subject: Name of the method that the verdict is to be about; None for ``laplace`` where it is among the
            methods, else for the last one that is not the reference.
        resamples: Bootstrap resamples of figures that are means over examples.
        rank_resamples: Of ``auroc``, ``aurc`` and ``ece_equal_mass``, which cost more; at most ``resamples``.
        seed: Seed of the bootstrap.

    Returns:
        The comparison; methods in the order given.

    Raises:
        LaplaceLoRAError: No method is given, ``reference`` or ``subject`` is not among them, their shapes differ,
            rows are no probabilities, or there are no resamples.
    """
    arrays = _same_shape(methods)
    known = f"the methods are {', '.join(arrays)}"
    if reference not in arrays:
        raise LaplaceLoRAError(f"there is no method {reference!r} to compare with; {known}: name one as reference.")
    if subject is not None and subject not in arrays:
        raise LaplaceLoRAError(f"there is no method {subject!r} to judge; {known}: name one as subject.")
    if resamples < 1 or rank_resamples < 1:
        raise LaplaceLoRAError("a bootstrap needs resamples; give resamples and rank_resamples of 1 or more.")
    numbers: IntArray = metrics.check_labels(labels, *next(iter(arrays.values())).shape)
    true_values = None if truth is None else metrics.check_probabilities(truth, "truth")
    scores = {name: score(values, numbers, true_values) for name, values in arrays.items()}
    sampled = resampled_figures(
        arrays, numbers, true_values, resamples=resamples, rank_resamples=min(rank_resamples, resamples), seed=seed
    )
    others = [name for name in arrays if name != reference]
    judged = subject or ("laplace" if "laplace" in others else others[-1] if others else reference)
    fields = [field for field in (*COMPARED, "confidence") if field != "kl" or truth is not None]

    def between(after: str, before: str) -> dict[str, Interval]:
        return {
            field: _difference(scores[after], scores[before], sampled[after], sampled[before], field)
            for field in fields
            if field in COMPARED
        }

    return Comparison(
        n=len(numbers),
        reference=reference,
        subject=judged,
        methods=scores,
        intervals={
            name: {
                field: percentile_interval(getattr(scores[name], field), sampled[name].get(field)) for field in fields
            }
            for name in arrays
        },
        differences={name: between(name, reference) for name in others},
        rivals={name: between(judged, name) for name in others if judged not in (name, reference)},
    )


def _same_shape(methods: Mapping[str, ProbabilitiesLike]) -> dict[str, FloatArray]:
    """Check each method's probabilities.

    Args:
        methods: (N, K) probabilities by name.

    Returns:
        The same as float64.

    Raises:
        LaplaceLoRAError: No method is given, shapes differ, or rows are no probabilities.
    """
    if not isinstance(methods, Mapping) or not methods:
        raise LaplaceLoRAError(
            "there is nothing to score by name; give at least one method as a mapping, {name: probabilities}."
        )
    arrays = {name: metrics.check_probabilities(values, name) for name, values in methods.items()}
    first = next(iter(arrays))
    for name, values in arrays.items():
        if values.shape != arrays[first].shape:
            raise LaplaceLoRAError(
                f"{first} has shape {arrays[first].shape} and {name} {values.shape}; score the same examples."
            )
    return arrays


def _difference(
    after: Scores,
    before: Scores,
    after_sampled: Mapping[str, FloatArray],
    before_sampled: Mapping[str, FloatArray],
    field: str,
) -> Interval:
    """Bound after - before of one metric by what it is on the same resamples."""
    new, old = getattr(after, field), getattr(before, field)
    # Two infinite losses have no difference; one infinite loss makes it infinite.
    undefined = new is None or old is None or (np.isinf(new) and np.isinf(old))
    paired = field in after_sampled and field in before_sampled
    return percentile_interval(
        None if undefined else new - old, after_sampled[field] - before_sampled[field] if paired else None
    )


def _plain(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Turn intervals into JSON values."""
    return {field: interval.to_dict() for field, interval in intervals.items()}
