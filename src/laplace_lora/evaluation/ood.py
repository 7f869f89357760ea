"""Does a model notice inputs unlike those it was trained on? AUROC and FPR95 of its uncertainty.

The examples of the training distribution are the positive class, and a score is the higher the more an example looks
like one of them (Hendrycks and Gimpel, ICLR 2017; Liang et al., ICLR 2018).
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.bootstrap import RANK_RESAMPLES, Interval, percentile_interval, resampling_counts
from laplace_lora.evaluation.metrics import FloatArray, IntArray, check_probabilities, entropies
from laplace_lora.evaluation.outputs import ProbabilitiesLike

#: Share of in-distribution examples that is to be accepted where the false positive rate is read off.
TRUE_POSITIVE_RATE = 0.95

# Elements of the larger of the two blocks of resampling counts: small blocks stay in the cache.
_BLOCK_ELEMENTS = 2**17


class Detection(NamedTuple):
    """How well one score tells the two data sets apart.

    Attributes:
        auroc: Chance that an in-distribution example scores higher than one from outside; ties count one half.
        fpr95: Share of the outside examples that are accepted by the highest threshold which accepts 95 % of the
            in-distribution examples. Less is better.
    """

    auroc: Interval
    fpr95: Interval


@dataclasses.dataclass(frozen=True)
class OutOfDistribution:
    """Detection of one outside data set.

    Attributes:
        n_in: Number of in-distribution examples.
        n_out: Number of outside examples.
        methods: For each method its detection by ``confidence``, ``entropy`` (negated) and, where it was given,
            ``mutual_information`` (negated).
    """

    n_in: int
    n_out: int
    methods: dict[str, dict[str, Detection]]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values.

        Returns:
            ``n_in``, ``n_out`` and ``methods``: method, score, ``auroc`` or ``fpr95``, then estimate, low, high.
        """
        return {
            "n_in": self.n_in,
            "n_out": self.n_out,
            "methods": {
                name: {
                    by: {field: interval.to_dict() for field, interval in detection._asdict().items()}
                    for by, detection in detections.items()
                }
                for name, detections in self.methods.items()
            },
        }


def ood_scores(
    in_distribution: Mapping[str, ProbabilitiesLike],
    out: Mapping[str, ProbabilitiesLike],
    *,
    in_mutual_information: Mapping[str, ArrayLike] | None = None,
    out_mutual_information: Mapping[str, ArrayLike] | None = None,
    resamples: int = RANK_RESAMPLES,
    seed: int = 0,
) -> OutOfDistribution:
    """Measure how well each method's confidence and uncertainty tell outside examples from in-distribution ones.

    Intervals are 95% percentile bootstrap intervals; the two data sets are resampled independently of each other, and
    alike for all methods and scores.

    Args:
        in_distribution: (N, K) probabilities of each method on the test set of the training distribution.
        out: (M, K) probabilities of the same methods on the outside examples.
        in_mutual_information: (N,) nats, for the methods that have it.
        out_mutual_information: (M,) nats, for the same methods.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        The detection rates.

    Raises:
        LaplaceLoRAError: The two mappings name different methods, or shapes do not belong together.
    """
    scores = _scores(in_distribution, out, in_mutual_information or {}, out_mutual_information or {})
    first_in, first_out = next(iter(next(iter(scores.values())).values()))
    separations = {
        (name, by): _Separation(inside, outside)
        for name, by_score in scores.items()
        for by, (inside, outside) in by_score.items()
    }
    sampled: dict[tuple[str, str], list[tuple[FloatArray, FloatArray]]] = {key: [] for key in separations}
    for inside_counts, outside_counts in _paired_counts(len(first_in), len(first_out), resamples, seed):
        for key, separation in separations.items():
            sampled[key].append(separation.rates(inside_counts, outside_counts))
    methods: dict[str, dict[str, Detection]] = {name: {} for name in scores}
    for (name, by), separation in separations.items():
        auroc, fpr = separation.rates(np.ones((1, len(first_in))), np.ones((1, len(first_out))))
        aurocs, fprs = (np.concatenate(values) for values in zip(*sampled[name, by], strict=True))
        methods[name][by] = Detection(
            percentile_interval(float(auroc[0]), aurocs), percentile_interval(float(fpr[0]), fprs)
        )
    return OutOfDistribution(len(first_in), len(first_out), methods)


class _Separation:
    """One score on both data sets, sorted once, so that resamples need only be counted."""

    def __init__(self, inside: FloatArray, outside: FloatArray) -> None:
        """Sort the scores.

        Args:
            inside: (N,) scores of the in-distribution examples.
            outside: (M,) scores of the outside examples.
        """
        self.inside_order: IntArray = np.argsort(-inside, kind="stable")  # falling
        self.outside_order: IntArray = np.argsort(outside, kind="stable")  # rising
        falling, rising = inside[self.inside_order], outside[self.outside_order]
        # Outside examples below, and not above, each in-distribution example.
        self.below: IntArray = np.searchsorted(rising, falling, side="left")
        self.not_above: IntArray = np.searchsorted(rising, falling, side="right")

    def rates(self, inside_counts: FloatArray, outside_counts: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Compute the area and the false positive rate of R data sets.

        Args:
            inside_counts: (R, N) how often each in-distribution example occurs.
            outside_counts: (R, M) how often each outside example occurs.

        Returns:
            (R,) areas and (R,) false positive rates.
        """
        inside = inside_counts[:, self.inside_order]
        n, m = inside_counts.shape[1], outside_counts.shape[1]
        so_far = np.concatenate(
            [np.zeros((len(inside), 1)), outside_counts[:, self.outside_order].cumsum(axis=1)], axis=1
        )
        below = so_far[:, self.below]
        auroc = (inside * (below + so_far[:, self.not_above])).sum(axis=1) / (2.0 * n * m)
        # Every example with the threshold's own score is accepted, so the whole of a tie is, as `below` has it.
        needed = math.ceil(TRUE_POSITIVE_RATE * n - 1e-9 * n)
        threshold = (inside.cumsum(axis=1) >= needed).argmax(axis=1)
        return auroc, 1.0 - below[np.arange(len(below)), threshold] / m


def _scores(
    inside: Mapping[str, ProbabilitiesLike],
    outside: Mapping[str, ProbabilitiesLike],
    inside_information: Mapping[str, ArrayLike],
    outside_information: Mapping[str, ArrayLike],
) -> dict[str, dict[str, tuple[FloatArray, FloatArray]]]:
    """Compute each method's scores on both data sets.

    Args:
        inside: Probabilities by method.
        outside: Probabilities by method.
        inside_information: Mutual information by method.
        outside_information: Mutual information by method.

    Returns:
        For each method and score the (N,) and (M,) values, higher for what looks like in-distribution.

    Raises:
        LaplaceLoRAError: Methods or shapes differ where they must not.
    """
    if not inside or set(inside) != set(outside):
        raise LaplaceLoRAError(
            f"methods in distribution ({', '.join(inside) or 'none'}) and outside ({', '.join(outside) or 'none'}) "
            "differ; give the probabilities of the same methods on both."
        )
    if set(inside_information) != set(outside_information) or not set(inside_information) <= set(inside):
        raise LaplaceLoRAError(
            "mutual information is given for other methods on one side than on the other, or for a method without "
            "probabilities; give it for the same methods on both sides."
        )
    scores: dict[str, dict[str, tuple[FloatArray, FloatArray]]] = {}
    expected: tuple[int, int, int] | None = None
    for name in inside:
        near = check_probabilities(inside[name], f"{name} in distribution")
        far = check_probabilities(outside[name], f"{name} out of distribution")
        shape = (len(near), len(far), near.shape[1])
        if near.shape[1] != far.shape[1] or (expected or shape) != shape:
            raise LaplaceLoRAError(
                f"{name} has shapes {near.shape} in distribution and {far.shape} outside, which do not fit each other "
                "or those of another method; give the same classes and the same examples for every method."
            )
        expected = shape
        scores[name] = {
            "confidence": (near.max(axis=1), far.max(axis=1)),
            "entropy": (-entropies(near), -entropies(far)),
        }
        if name in inside_information:
            scores[name]["mutual_information"] = (
                -_information(inside_information[name], len(near), name),
                -_information(outside_information[name], len(far), name),
            )
    return scores


def _information(values: ArrayLike, length: int, name: str) -> FloatArray:
    """Check the mutual information of one method.

    Args:
        values: (N,) nats.
        length: N.
        name: The method.

    Returns:
        The same as float64.

    Raises:
        LaplaceLoRAError: Of another length, or not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (length,) or not np.isfinite(array).all():
        raise LaplaceLoRAError(
            f"mutual information of {name} has shape {array.shape} or is not finite; give {length} finite numbers."
        )
    return array


def _paired_counts(inside: int, outside: int, resamples: int, seed: int) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield independent resamples of both data sets, equally many at a time."""
    block = max(1, _BLOCK_ELEMENTS // max(inside, outside))
    return zip(
        resampling_counts(inside, resamples, (seed, 0), block),
        resampling_counts(outside, resamples, (seed, 1), block),
        strict=True,
    )
