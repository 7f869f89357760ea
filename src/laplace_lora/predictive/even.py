"""Gaussian logits that keep the order of their means: the variance spread evenly over the contrasts.

With more than two classes whose logits vary unequally, the likeliest class of the averaged softmax can be another than
that of the mean logits: not for what the data say of the classes, but for how much the adapter's weights move each.
Over logits of covariance s^2 H, H = I - 11^T/K, the order is that of the means: such logits are the means plus noise
that is exchangeable between classes, and where m_i > m_j, p_i - p_j is positive in the mean over any draw of the noise
and the same draw with i and j swapped.
"""

import torch
from torch import Tensor


def evened(covariance: Tensor) -> Tensor:
    """Spread the variance of the logits' contrasts evenly over them.

    Args:
        covariance: (B, K, K) of the logits; a common shift of them does not matter.

    Returns:
        (B, K, K) s^2 H, with (K-1) s^2 = tr(H covariance H). For two classes that is H covariance H itself.
    """
    classes = covariance.shape[-1]
    total = covariance.diagonal(dim1=1, dim2=2).sum(dim=1) - covariance.sum(dim=(1, 2)) / classes
    centring = torch.eye(classes, dtype=covariance.dtype, device=covariance.device) - 1.0 / classes
    return (total / max(1, classes - 1)).clamp(min=0.0)[:, None, None] * centring


def in_order_of(mean: Tensor, probabilities: Tensor) -> Tensor:
    """Put probabilities in the order of the means, which they have already but for the integral's rounding.

    Args:
        mean: (B, K) logits.
        probabilities: (B, K).

    Returns:
        (B, K) the same numbers.
    """
    order = mean.argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(probabilities).scatter(1, order, probabilities.sort(dim=-1, descending=True).values)
