"""What every rule asks of its Gaussian logits, and the logits without their common shift."""

import torch
from torch import Tensor

from laplace_lora.errors import LaplaceLoRAError


def require_gaussian(mean: Tensor, covariance: Tensor, rule: str) -> None:
    """Refuse what is no batch of Gaussian logits.

    Args:
        mean: (B, K) means, in logits.
        covariance: (B, K, K) covariances, in squared logits.
        rule: Who asks, for the error.

    Raises:
        LaplaceLoRAError: The shapes do not fit, or an entry is not finite.
    """
    if mean.ndim != 2 or covariance.shape != (*mean.shape, mean.shape[-1]) or mean.shape[-1] == 0:
        raise LaplaceLoRAError(
            f"{rule} got a mean of shape {tuple(mean.shape)} and a covariance of shape "
            f"{tuple(covariance.shape)}; pass (B, K) and (B, K, K)."
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise LaplaceLoRAError(
            "the logits' mean or covariance is not finite; look for overflow in the model (a float16 base?) or "
            "raise the prior precision."
        )


def centred(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Take out the common shift of the logits, which a softmax does not see.

    Args:
        mean: (B, K) means, in logits.
        covariance: (B, K, K) covariances, in squared logits.

    Returns:
        H mean and H covariance H with H = I - 11^T/K, float64.
    """
    mean, covariance = mean.detach().double(), covariance.detach().double()
    covariance = covariance - covariance.mean(dim=1, keepdim=True)
    return mean - mean.mean(dim=1, keepdim=True), covariance - covariance.mean(dim=2, keepdim=True)


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Decompose covariances, whose variances of zero come out as rounding, which a root would magnify.

    Args:
        covariance: (B, K, K), positive semi-definite but for rounding.

    Returns:
        (B, K) variances in ascending order, 0 where they are rounding, and (B, K, K) axes as columns.
    """
    variances, axes = torch.linalg.eigh(0.5 * (covariance + covariance.mT))
    return torch.where(variances > 1e-12 * variances[:, -1:], variances, 0.0), axes


def root_of(covariance: Tensor) -> Tensor:
    """Return the symmetric roots of covariances, which exist at any rank and do not depend on a choice of axes.

    Args:
        covariance: (B, K, K), positive semi-definite but for rounding.

    Returns:
        (B, K, K) symmetric R with R R = covariance.
    """
    variances, axes = principal_axes(covariance)
    return (axes * variances.sqrt()[:, None, :]) @ axes.mT
