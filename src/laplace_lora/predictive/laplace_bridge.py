"""The Laplace bridge: Gaussian logits taken for a Dirichlet distribution's, whose averages are in closed form."""

import math

import torch
from torch import Tensor

from laplace_lora.predictive.gaussian import centred, require_gaussian

# Smaller variances beside the largest one are rounding. At zero a class's Dirichlet parameter would be infinite.
_LEAST_VARIANCE = 1e-12


def laplace_bridge(
    mean: Tensor, covariance: Tensor, points: int = 0, *, normalised: bool = False
) -> tuple[Tensor, Tensor]:
    """Approximate E softmax(f) and E H[softmax(f)], f ~ N(mean, covariance), through a Dirichlet distribution.

    In the basis of its logits, a Dirichlet distribution with parameters alpha has a Laplace approximation (MacKay,
    "Choice of basis for Laplace approximation", Machine Learning 33, 1998). Inverted, it gives the parameters that
    belong to a mean mu of sum zero and the variances S_kk of centred logits (Hobbhahn, Kristiadi & Hennig, "Fast
    predictive uncertainty for classification with Bayesian deep networks", UAI 2022):

        alpha_k = (1 - 2/K + exp(mu_k) / K^2 sum_l exp(-mu_l)) / S_kk.

    Probabilities are alpha / sum(alpha), and the expected entropy of a Dirichlet distribution is
    sum_k alpha_k / alpha_0 (digamma(alpha_0 + 1) - digamma(alpha_k + 1)), alpha_0 = sum(alpha).

    The paper conditions the Gaussian on a sum of zero; here it is projected onto it, mu = H mean and S = H covariance H
    with H = I - 11^T/K. For centred logits the two are one; for others conditioning would depend on their common
    shift, of which a softmax is independent. Everything is computed from log alpha, so that logits and variances of any
    size are safe. Where there is no variance at all there is no Dirichlet distribution, and the softmax is exact.

    Known limits: only variances enter, no correlations. For two classes the variances of the centred logits are equal
    and cancel, so that the probabilities are softmax(mean), the trained adapter's own. For more, a small covariance
    that is not a Dirichlet's does not lead to softmax(mean).

    Args:
        mean: (B, K) means, in logits.
        covariance: (B, K, K) covariances, in squared logits, of any rank; full or of the centred logits.
        points: Not used; rules are called alike.
        normalised: Whether to scale mu by 1 / sqrt(c) and S by 1 / c first, c = mean_k S_kk / sqrt(K/2): the
            correction for large variances that the paper proposes, as laplace-torch computes it. No rule of
            ``LaplaceConfig``: as the covariance goes to zero it tends to one class with certainty, and at zero it is
            not defined (here it is the softmax). It is there to be compared.

    Returns:
        (B, K) probabilities, which sum to one, and (B,) expected entropies in nats; float64.
    """
    require_gaussian(mean, covariance, "laplace_bridge")
    sure = torch.softmax(mean.detach().double(), dim=-1)
    classes = mean.shape[1]
    whole = covariance.detach().double().diagonal(dim1=1, dim2=2).amax(dim=1, keepdim=True)
    mean, covariance = centred(mean, covariance)
    variance = covariance.diagonal(dim1=1, dim2=2)
    largest = variance.amax(dim=1, keepdim=True)
    # What centring leaves of a shift that all logits share is rounding.
    varies = (largest > _LEAST_VARIANCE * whole) & (largest > torch.finfo(torch.float64).tiny)
    variance = torch.where(varies, variance.clamp(min=_LEAST_VARIANCE * largest), 1.0)
    if normalised:
        scale = variance.mean(dim=1, keepdim=True) / math.sqrt(classes / 2.0)
        mean, variance = mean / scale.sqrt(), variance / scale
    # log(1 - 2/K + exp(mu_k) / K^2 sum_l exp(-mu_l)); for two classes the first part is zero.
    exponent = mean + torch.logsumexp(-mean, dim=1, keepdim=True) - 2.0 * math.log(classes)
    if classes > 2:
        exponent = torch.logaddexp(exponent, torch.full_like(exponent, math.log1p(-2.0 / classes)))
    log_alpha = exponent - variance.log()
    probabilities = torch.softmax(log_alpha, dim=1)
    total = torch.logsumexp(log_alpha, dim=1, keepdim=True)
    entropies = (probabilities * (_digamma_above(total) - _digamma_above(log_alpha))).sum(dim=1)
    exact = torch.special.entr(sure).sum(dim=1)
    return torch.where(varies, probabilities, sure), torch.where(varies[:, 0], entropies.clamp(min=0.0), exact)


def _digamma_above(log_alpha: Tensor) -> Tensor:
    """Return digamma(alpha + 1)."""
    # digamma(x + 1) = log x + 1/(2x) - ...: beyond exp(40) nothing but the logarithm is left.
    return torch.where(log_alpha > 40.0, log_alpha, torch.digamma(log_alpha.clamp(max=40.0).exp() + 1.0))
