"""Choosing the prior precision by the negative log-likelihood of held-out data, in one pass over them.

The pass collects every example's covariance by eigenvalue, and with it at every prior; the choice itself costs only
integrals. Of real outputs, whose noise is chosen too, and where no such spectrum is, it collects them at multiples.
"""

import dataclasses
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from laplace_lora.errors import MemoryLimitError, UnsupportedInputError
from laplace_lora.likelihoods import Likelihood
from laplace_lora.predictive import Predictive

# A quarter decade apart: the NLL is flat on that scale.
SCALES = torch.logspace(-4, 8, 49, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class ValidationResult:
    """The chosen multiple of the prior.

    Attributes:
        scale: Factor on every group's precision.
        nll: Mean negative log-likelihood of the validation data there, in nats.
        at_edge: Whether the smallest or largest multiple won.
    """

    scale: float
    nll: float
    at_edge: bool


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


def choose_scale(
    mean: Tensor,
    covariance: Callable[[float], Tensor],
    labels: Tensor,
    predictive: Callable[[Tensor, Tensor], Predictive],
) -> ValidationResult:
    """Find the multiple of the prior with the least NLL, from coarse to fine.

    Args:
        mean: (N, K) logits.
        covariance: Gives (N, K, K) at a multiple in ``SCALES``.
        labels: (N,) class indices.
        predictive: Gaussian logits to probabilities.

    Returns:
        The choice. Ties go to the larger precision, which stays nearer to the trained adapter.
    """
    seen: dict[int, float] = {}
    stride = 8
    candidates = list(range(0, len(SCALES), stride))
    while True:
        for position in candidates:
            if position not in seen:
                seen[position] = mean_nll(predictive(mean, covariance(float(SCALES[position]))), labels)
        best = min(seen, key=lambda position: (seen[position], -position))
        if stride == 1:
            return ValidationResult(float(SCALES[best]), seen[best], best in (0, len(SCALES) - 1))
        stride //= 2
        candidates = [p for p in (best - stride, best + stride) if 0 <= p < len(SCALES)]


def mean_nll(predictive: Predictive, labels: Tensor) -> float:
    """Return the mean negative log-likelihood of labels under predictive probabilities.

    Args:
        predictive: For N examples.
        labels: (N,) class indices.

    Returns:
        The mean, in nats.
    """
    chosen = predictive.probabilities.gather(1, labels[:, None])
    return float(-chosen.clamp(min=1e-300).log().mean())
