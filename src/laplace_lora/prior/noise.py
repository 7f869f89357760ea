"""The noise variance of a Gaussian likelihood, chosen with the prior precision and like it without a model pass.

Curvature is collected at a noise variance sigma_0^2. At s sigma_0^2 the posterior's precision is
``G / s + Delta = (G + s Delta) / s``: that of the collected curvature G at precisions s delta, its covariance times s.
"""

import dataclasses
import math

import torch
from torch import Tensor

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.posterior import Posterior
from laplace_lora.prior.evidence import fixed_point

#: Squared residuals below this share of the noise variance cannot be told from rounding.
LEAST = 1e-12
_STEPS = 100
_WIDEST = 1e12


@dataclasses.dataclass(frozen=True)
class NoiseResult:
    """Prior and noise.

    Attributes:
        precision: (G,) prior precisions.
        scale: Noise variance over the one at which the curvature was collected, s.
    """

    precision: Tensor
    scale: float


def tune_noise(
    posterior: Posterior, initial: Tensor, squared_norms: Tensor, squared_error: float, outputs: int, variance: float
) -> NoiseResult:
    """Maximise the evidence over prior precisions and noise variance.

    At the maximum ``sigma^2 = RSS / (N - gamma)`` (MacKay 1992). Its root is found by bisection from RSS / N upwards,
    where the evidence rises, with the prior's fixed point at every step.

    Args:
        posterior: The likelihood part, at noise variance ``variance``.
        initial: (G,) precisions to start from.
        squared_norms: (G,) |theta_g|^2.
        squared_error: RSS, the sum of squared residuals at the trained weights.
        outputs: N, their number.
        variance: sigma_0^2.

    Returns:
        The maximum.

    Raises:
        LaplaceLoRAError: The residuals are 0, so that the evidence grows without bound.
    """
    least = squared_error / (outputs * variance)
    if not least > LEAST:
        raise LaplaceLoRAError(
            "the adapter fits its training targets exactly, and the evidence of the noise variance has no maximum "
            f"then; tune on held-out data: tune_prior('validation', loader). Or, if residuals of {least**0.5:.0e} "
            "standard deviations of the noise are none of rounding, fit with a smaller "
            "LaplaceConfig(noise_variance=...)."
        )
    precision = initial

    def excess(scale: float) -> float:
        nonlocal precision
        scaled = fixed_point(posterior, precision * scale, squared_norms / scale).precision
        precision = scaled / scale
        gamma = float(posterior.effective_parameters(scaled).sum())
        return squared_error / (scale * variance) - (outputs - gamma)

    low, high = math.log(least), math.log(2.0 * least)
    while excess(math.exp(high)) > 0.0:
        low, high = high, high + math.log(2.0)
        if high > math.log(_WIDEST * least):
            raise LaplaceLoRAError(
                "the evidence of the noise variance grows without bound; tune on held-out data instead: "
                "tune_prior('validation', loader)."
            )
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(math.exp(middle)) > 0.0 else (low, middle)
        if high - low < 1e-10:
            break
    scale = math.exp(0.5 * (low + high))
    excess(scale)
    return NoiseResult(precision, scale)


def validate_noise(mean: Tensor, covariances: Tensor, targets: Tensor, scales: Tensor, variance: float) -> NoiseResult:
    """Find multiple of the prior and noise variance of the least Gaussian NLL on held-out data.

    With curvature precision a delta the predictive variance at noise scale s is ``s (C_a + sigma_0^2)``, so that the
    best s is the mean of ``r^2 / (C_a + sigma_0^2)`` and the prior's multiple is a / s.

    Args:
        mean: (N, 1) outputs.
        covariances: (A, N, 1, 1) variances at the multiples ``scales`` of the prior.
        targets: (N,) or (N, 1).
        scales: (A,) multiples a.
        variance: sigma_0^2.

    Returns:
        A one-element precision, the multiple of the prior; and s.
    """
    squared = (targets.reshape(mean.shape).double() - mean.double()).square()[:, 0]
    spread = covariances[:, :, 0, 0] + variance
    best = (squared / spread).mean(dim=1).clamp(min=1e-14)
    nll = 0.5 * (best.log() + spread.log().mean(dim=1))
    # Ties go to the larger precision, which stays nearer to the trained adapter.
    chosen = len(scales) - 1 - int(nll.flip(0).argmin())
    scale = float(best[chosen])
    return NoiseResult(torch.tensor([float(scales[chosen]) / scale], dtype=torch.float64), scale)
