"""Gaussian logits of held-out examples at every prior, and how good their probabilities are there.

One pass over the data gives logits and covariances by eigenvalue (:mod:`laplace_lora.posterior.spectrum`). Everything
here is arithmetic on those: no precision and no temperature costs a model pass.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from laplace_lora.config import Score
from laplace_lora.predictive.differentiable import nodes_for, smooth_probabilities

# Logits of examples taken together: examples x nodes x classes.
_CHUNK = 2**20
ECE_BINS = 15


class Covariances(Protocol):
    """Covariances of examples as a function of the prior."""

    def covariance(self, precision: Tensor) -> Tensor:
        """Return (N, K, K) at (G,) precisions."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Labelled examples that an adapter has not been trained on.

    Attributes:
        mean: (N, K) logits, -inf for absent options.
        spectrum: Their covariances at every prior: a :class:`Spectrum`, or :class:`AtScales`.
        labels: (N,) class indices.
    """

    mean: Tensor
    spectrum: Covariances
    labels: Tensor

    def __len__(self) -> int:
        """Return N."""
        return len(self.labels)

    def probabilities(self, precision: Tensor, temperature: Tensor | float, nodes: int | None = None) -> Tensor:
        """Average the softmax, differentiably by both arguments.

        Args:
            precision: (G,) prior precisions, in 1 / weight^2.
            temperature: Divides the mean logits.
            nodes: Of the integral; as many as a mean over examples to 1e-3 needs if not given.

        Returns:
            (N, K) probabilities, float64.
        """
        classes = self.mean.shape[1]
        nodes = nodes or nodes_for(classes)
        rows = max(1, _CHUNK // (nodes * classes))
        parts = [
            smooth_probabilities(mean / temperature, covariance, nodes)
            for mean, covariance in zip(
                self.mean.split(rows), self.spectrum.covariance(precision).split(rows), strict=True
            )
        ]
        return torch.cat(parts)


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of -log p_y, in nats.

    Args:
        probabilities: (N, K).
        labels: (N,) class indices.

    Returns:
        A scalar.
    """
    return -probabilities.gather(1, labels[:, None]).clamp(min=1e-300).log().mean()


def brier(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mean squared distance of probabilities from the labels (Brier 1950), summed over classes: 0 to 2.

    Args:
        probabilities: (N, K).
        labels: (N,) class indices.

    Returns:
        A scalar.
    """
    return (probabilities - torch.nn.functional.one_hot(labels, probabilities.shape[1])).square().sum(dim=1).mean()


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the ECE: the mean gap of confidence and accuracy over 15 bins of equal width (Naeini et al. 2015).

    Args:
        probabilities: (N, K).
        labels: (N,) class indices.

    Returns:
        A scalar, piecewise smooth.
    """
    confidence, prediction = probabilities.max(dim=1)
    bins = (confidence.detach() * ECE_BINS).ceil().long().clamp(1, ECE_BINS) - 1
    gaps = (prediction == labels).to(confidence) - confidence
    return torch.zeros(ECE_BINS, dtype=gaps.dtype).index_add(0, bins.cpu(), gaps.cpu()).abs().sum() / len(labels)


SCORES: dict[Score, Callable[[Tensor, Tensor], Tensor]] = {
    "nll": negative_log_likelihood,
    "brier": brier,
    "ece": expected_calibration_error,
}


def score(
    folds: Sequence[HeldOut],
    precision: Tensor,
    temperature: Tensor | float,
    kind: Score = "nll",
    nodes: int | None = None,
) -> Tensor:
    """Score held-out examples, of one adapter or of several folds' adapters together.

    Args:
        folds: Examples of each adapter.
        precision: (G,) prior precisions, common to all.
        temperature: Divides the mean logits.
        kind: ``nll``, ``brier`` or ``ece``.
        nodes: Of the integral.

    Returns:
        The mean over all examples: a scalar, differentiable.
    """
    found = [fold.probabilities(precision, temperature, nodes) for fold in folds]
    widest = max(part.shape[1] for part in found)
    padded = [torch.nn.functional.pad(part, (0, widest - part.shape[1])) for part in found]
    return SCORES[kind](torch.cat(padded), torch.cat([fold.labels for fold in folds]))
