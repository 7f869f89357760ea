"""The multi-class probit approximation: probabilities of Gaussian logits in closed form."""

import math

import torch
from torch import Tensor

from laplace_lora.predictive.integrals import expected_softmax


def probit(mean: Tensor, covariance: Tensor) -> Tensor:
    """Approximate E softmax(f), f ~ N(mean, covariance), by shrinking every logit by its own variance.

    A softmax does not see a shift common to all logits, and neither does this: mean and covariance are centred first,
    fbar = H mean and S = H covariance H with H = I - 11^T/K, and for K > 2 the result is
    softmax(fbar_k / sqrt(1 + pi/8 S_kk)) (Gibbs, "Bayesian Gaussian processes for regression and classification", PhD
    thesis, Cambridge, 1997; Lu, Ie & Sha, "Mean-field approximation to Gaussian-softmax integral with application to
    uncertainty estimation", 2020). For K = 2 it is MacKay's sigmoid((f_1 - f_0) / sqrt(1 + pi/8 Var(f_1 - f_0)))
    ("The evidence framework applied to classification networks", Neural Computation 4, 1992), the general
    formula's variance being a quarter of that of the difference.

    Args:
        mean: (B, K) means, in logits.
        covariance: (B, K, K) covariances, in squared logits; full or of the centred logits.

    Returns:
        (B, K) probabilities, float64. Two classes are right to 0.03. More are not to be relied on: the formula sees no
        correlations, and over random covariances with standard deviations up to 30 it is typically wrong by 0.1, and
        at worst altogether. It is there to compare with published numbers;
        :func:`laplace_lora.predictive.expected_softmax` is the integral itself.
    """
    mean, covariance = mean.double(), covariance.double()
    if mean.shape[-1] == 2:
        difference = mean[..., 1] - mean[..., 0]
        variance = covariance[..., 0, 0] + covariance[..., 1, 1] - covariance[..., 0, 1] - covariance[..., 1, 0]
        logit = difference / (1.0 + math.pi / 8.0 * variance.clamp(min=0.0)).sqrt()
        return torch.sigmoid(torch.stack([-logit, logit], dim=-1))
    centred = mean - mean.mean(dim=-1, keepdim=True)
    row = covariance.mean(dim=-1)
    column = covariance.mean(dim=-2)
    variance = covariance.diagonal(dim1=-2, dim2=-1) - row - column + row.mean(dim=-1, keepdim=True)
    return torch.softmax(centred / (1.0 + math.pi / 8.0 * variance.clamp(min=0.0)).sqrt(), dim=-1)


def probit_with_entropy(mean: Tensor, covariance: Tensor, points: int = 4096) -> tuple[Tensor, Tensor]:
    """Return probit probabilities beside the expected entropy, which has no closed form and comes from the integral.

    Args:
        mean: (B, K) means, in logits.
        covariance: (B, K, K) covariances, in squared logits.
        points: Of the integral, for four classes and more.

    Returns:
        (B, K) probabilities of :func:`probit` and (B,) expected entropies in nats of
        :func:`laplace_lora.predictive.expected_softmax`; float64.
    """
    _, entropy = expected_softmax(mean, covariance, points)
    return probit(mean, covariance), entropy
