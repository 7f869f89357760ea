"""The evidence (log marginal likelihood) of the Laplace approximation, and its maximum by a fixed point.

log p(D) = log p(D | theta*) - 1/2 sum_g delta_g |theta_g|^2 - 1/2 log det(P Delta^-1)

Its derivative by log delta_g is 1/2 (gamma_g - delta_g |theta_g|^2), so that delta = gamma / |theta|^2 at
the maximum (MacKay 1992). Plain MacKay steps can oscillate; stepping half way in the logarithm is a
contraction, since -1 < d log gamma / d log delta < 0 (DESIGN, section 2, item 8).
"""

import dataclasses

import torch
from torch import Tensor

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.posterior import Posterior

# Beyond these the posterior is the prior, or a point, to every digit. A group whose weights are all 0
# (lora_B of an untrained adapter) has no finite maximum and ends at the upper bound.
LOWEST, HIGHEST = 1e-8, 1e10
_TOLERANCE = 1e-10
_MOST_STEPS = 500


@dataclasses.dataclass(frozen=True)
class EvidenceResult:
    """Where the fixed point ended.

    Attributes:
        precision: (G,) prior precisions.
        steps: Number of steps taken.
    """

    precision: Tensor
    steps: int


def fixed_point(posterior: Posterior, initial: Tensor, squared_norms: Tensor) -> EvidenceResult:
    """Maximise the evidence over the prior precisions, without any model pass.

    Args:
        posterior: The likelihood part.
        initial: (G,) precisions to start from.
        squared_norms: (G,) |theta_g|^2 of the trained weights.

    Returns:
        The maximum.

    Raises:
        LaplaceLoRAError: The iteration did not converge, which no curvature should cause.
    """
    log_delta = initial.log()
    for step in range(1, _MOST_STEPS + 1):
        gamma = posterior.effective_parameters(log_delta.exp())
        target = (gamma / squared_norms).nan_to_num(nan=LOWEST, posinf=HIGHEST).clamp(LOWEST, HIGHEST).log()
        updated = 0.5 * (log_delta + target)
        change = float((updated - log_delta).abs().max())
        log_delta = updated
        if change < _TOLERANCE:
            return EvidenceResult(log_delta.exp(), step)
    raise LaplaceLoRAError(
        f"evidence tuning still moved by {change:.1e} after {_MOST_STEPS} steps; tune on validation data instead: "
        "tune_prior('validation', loader)."
    )


def log_evidence(posterior: Posterior, precision: Tensor, squared_norms: Tensor, log_likelihood: float) -> float:
    """Return the log marginal likelihood.

    Args:
        posterior: The likelihood part.
        precision: (G,) prior precisions.
        squared_norms: (G,) |theta_g|^2.
        log_likelihood: log p(D | theta*), in nats.

    Returns:
        The evidence, in nats.
    """
    quadratic = float((precision * squared_norms).sum())
    return log_likelihood - 0.5 * quadratic - 0.5 * posterior.log_determinant(precision)


def squared_norms(weights: list[Tensor], groups: tuple[int, ...]) -> Tensor:
    """Sum the squares of the trained weights of every group.

    Args:
        weights: One matrix per site.
        groups: For every matrix the position of its group.

    Returns:
        (G,) float64.
    """
    sums = torch.zeros(1 + max(groups), dtype=torch.float64)
    for weight, group in zip(weights, groups, strict=True):
        sums[group] += weight.double().square().sum().cpu()
    return sums
