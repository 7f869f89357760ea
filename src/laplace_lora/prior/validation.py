"""Held-out data in memory, from one pass over them: by eigenvalue, or at multiples of the prior.

Multiples serve real outputs, whose noise is chosen too, and structures whose eigenvectors depend on the prior.
"""

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor

from laplace_lora.errors import MemoryLimitError, UnsupportedInputError
from laplace_lora.likelihoods import Likelihood
from laplace_lora.predictive import Predictive
from laplace_lora.prior.held_out import negative_log_likelihood

# A quarter decade apart: the NLL is flat on that scale.
SCALES = torch.logspace(-4, 8, 49, dtype=torch.float64)


def collect(
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]], likelihood: Likelihood, limit_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Hold a whole validation set's Gaussian logits, 8 S K^2 bytes per example.

    Args:
        batches: Logits (B, K), covariances (S, B, K, K) and labels (B,) or None.
        likelihood: Refuses labels that are no class indices.
        limit_bytes: Most bytes of covariances.

    Returns:
        (N, K) logits, (S, N, K, K) covariances and (N,) labels. K is that of the example with most options; absent
        ones have logits of -inf and covariances of 0.

    Raises:
        UnsupportedInputError: There are no labels, or no batches.
        MemoryLimitError: The covariances would take more bytes than the limit.
    """
    means, covariances, labels = [], [], []
    held = 0
    for logits, covariance, label in batches:
        if label is None:
            raise UnsupportedInputError("the validation batches have no labels; give labelled data.")
        likelihood.log_likelihood(logits, label)
        held += covariance.nbytes
        means.append(logits)
        covariances.append(covariance)
        labels.append(label.long() if likelihood.shift_invariant else label)
        # torch.cat holds everything twice for a moment.
        if 2 * held > limit_bytes:
            examples = sum(map(len, means))
            raise MemoryLimitError(
                f"tuning on validation data holds {2 * held} bytes after {examples} examples, the limit is "
                f"{limit_bytes}; give fewer of them, use tune_prior('evidence'), or raise "
                "LaplaceConfig(memory_limit_bytes=...)."
            )
    if not means:
        raise UnsupportedInputError("the validation loader gave no batch; check the data.")
    widest = max(mean.shape[1] for mean in means)
    for position, mean in enumerate(means):
        missing = widest - mean.shape[1]
        if missing:
            means[position] = torch.nn.functional.pad(mean, (0, missing), value=float("-inf"))
            covariances[position] = torch.nn.functional.pad(covariances[position], (0, missing, 0, missing))
    return torch.cat(means), torch.cat(covariances, dim=1), torch.cat(labels)


@dataclasses.dataclass(frozen=True)
class AtScales:
    """Gaussian outputs of N examples at multiples of a prior, where there is no spectrum.

    Attributes:
        covariances: (S, N, K, K) at the multiples ``SCALES``.
    """

    covariances: Tensor

    def covariance(self, precision: Tensor) -> Tensor:
        """Return covariances at one multiple, between two of ``SCALES`` interpolated in its logarithm.

        Args:
            precision: (1,) the multiple.

        Returns:
            (N, K, K) float64, differentiable; positive semi-definite.
        """
        logs = SCALES.log()
        at = precision[0].log().to(logs).clamp(float(logs[0]), float(logs[-1]))
        upper = int(torch.searchsorted(logs, at.detach()).clamp(1, len(logs) - 1))
        share = (at - logs[upper - 1]) / (logs[upper] - logs[upper - 1])
        low, high = self.covariances[upper - 1].double(), self.covariances[upper].double()
        return torch.lerp(low, high, share.to(low))


def mean_nll(predictive: Predictive, labels: Tensor) -> float:
    """Return the mean negative log-likelihood of labels under predictive probabilities.

    Args:
        predictive: For N examples.
        labels: (N,) class indices.

    Returns:
        The mean, in nats.
    """
    return float(negative_log_likelihood(predictive.probabilities, labels))
