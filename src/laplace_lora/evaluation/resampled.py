"""All figures of all methods on the same resamples of the examples, in one pass over the resamples."""

from collections.abc import Mapping

import numpy as np

from laplace_lora.evaluation import bootstrap, metrics, selective
from laplace_lora.evaluation.metrics import FloatArray, IntArray
from laplace_lora.evaluation.ranking import Ranking, groups, rank

# What ranking.groups and selective make of a block are a dozen arrays of its size; small blocks stay in the cache.
_RANK_BLOCK_ELEMENTS = 2**17


def resampled_figures(
    methods: Mapping[str, FloatArray],
    labels: IntArray,
    truth: FloatArray | None = None,
    *,
    resamples: int = bootstrap.RESAMPLES,
    rank_resamples: int = bootstrap.RANK_RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, FloatArray]]:
    """Compute every figure on every resample.

    Args:
        methods: (N, K) probabilities of each method.
        labels: (N,) class numbers.
        truth: (N, K) the probabilities that the labels were drawn from; None where unknown.
        resamples: Resamples for ``nll``, ``brier``, ``accuracy``, ``confidence``, ``kl`` and ``ece``.
        rank_resamples: Resamples for ``auroc``, ``aurc`` and ``ece_equal_mass``: the first of the same.
        seed: Seed of the resampling.

    Returns:
        For each method and figure the values, (resamples,) or (rank_resamples,). Values of one figure belong to the
        same resamples for every method. A figure that is infinite on the data is left out.
    """
    columns = {name: _columns(probabilities, labels, truth) for name, probabilities in methods.items()}
    rankings = {name: rank(probabilities, labels) for name, probabilities in methods.items()}
    every = np.concatenate([matrix for parts in columns.values() for matrix in parts.values()], axis=1)
    sums: list[FloatArray] = []
    ranked: dict[str, list[dict[str, FloatArray]]] = {name: [] for name in methods}
    done = 0
    for counts in bootstrap.resampling_counts(len(labels), resamples, seed):
        sums.append(counts @ every)
        few = counts[: max(0, rank_resamples - done)]
        step = max(1, _RANK_BLOCK_ELEMENTS // len(labels))
        for start in range(0, len(few), step):
            for name, ranking in rankings.items():
                ranked[name].append(_rank_figures(ranking, few[start : start + step]))
        done += len(counts)
    means = np.concatenate(sums) / len(labels)
    figures: dict[str, dict[str, FloatArray]] = {}
    position = 0
    for name, parts in columns.items():
        figures[name] = {}
        for field, matrix in parts.items():
            values = means[:, position : position + matrix.shape[1]]
            position += matrix.shape[1]
            figures[name][field] = np.abs(values).sum(axis=1) if field == "ece" else values[:, 0]
        for field in ("auroc", "aurc", "ece_equal_mass"):
            figures[name][field] = np.concatenate([block[field] for block in ranked[name]])
    return figures


def _columns(probabilities: FloatArray, labels: IntArray, truth: FloatArray | None) -> dict[str, FloatArray]:
    """Return the scores of each example, (N, 1) or (N, bins), whose means make the figures; no infinite ones."""
    scores = {
        "nll": metrics.log_losses(probabilities, labels),
        "brier": metrics.brier_scores(probabilities, labels),
        "accuracy": metrics.correct(probabilities, labels),
        "confidence": probabilities.max(axis=1),
    }
    if truth is not None:
        scores["kl"] = metrics.kl_divergences(truth, probabilities)
    columns = {field: values[:, None] for field, values in scores.items() if np.isfinite(values).all()}
    return {**columns, "ece": metrics.bin_gaps(probabilities, labels)}


def _rank_figures(ranking: Ranking, counts: FloatArray) -> dict[str, FloatArray]:
    """Compute what depends on the order by confidence, for each row of counts."""
    counted = groups(ranking, counts)
    return {
        "auroc": selective.auroc_of(counted),
        "aurc": selective.aurc_of(counted),
        "ece_equal_mass": selective.equal_mass_ece_of(counted),
    }
