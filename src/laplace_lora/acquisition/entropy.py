"""Entropy of the prediction (uncertainty sampling): how uncertain the label is, for whatever reason."""

from torch import Tensor

from laplace_lora.acquisition.base import require_scores
from laplace_lora.predictive import Predictive


def entropy(predictive: Predictive) -> Tensor:
    """Score by H[E p(y | theta)], what no more data could remove included (Lewis & Gale, SIGIR 1994).

    Args:
        predictive: Of B examples.

    Returns:
        (B,) entropies in nats; of real outputs, of the Gaussian density, which can be negative.
    """
    return require_scores(predictive.total_entropy, "entropy")
