"""Plain Monte Carlo over Gaussian logits, as the published Laplace-LoRA predicts."""

import torch
from torch import Tensor

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.predictive.gaussian import centred, require_gaussian, root_of

_SEED = 0
# Largest number of elements of one temporary tensor (8 MB).
_CHUNK = 2**20
_BLOCK = 4096


def monte_carlo(mean: Tensor, covariance: Tensor, points: int = 4096) -> tuple[Tensor, Tensor]:
    """Average softmax(f), and its entropy, over draws f ~ N(mean, covariance).

    The paper draws 100,000 times (Yang et al., "Bayesian low-rank adaptation for large language models", ICLR 2024);
    the standard error of a probability is at most 0.5 / sqrt(points), 1.6e-3 for as many draws. It is there to compare
    with published numbers: :func:`laplace_lora.predictive.expected_softmax` is nearer in less time.

    The draws come from a generator of their own with a fixed seed, once for each number of classes and of points, and
    serve every row: an example's result does not depend on its batch, and torch's random state is left alone. So the
    errors of different examples are correlated, and do not average out over a data set.

    Working memory beyond the results stays below 100 MB, whatever B and points, up to thousands of classes.

    Args:
        mean: (B, K) means, in logits.
        covariance: (B, K, K) covariances, in squared logits, positive semi-definite of any rank. Only the differences
            of logits matter.
        points: Draws.

    Returns:
        (B, K) probabilities, which sum to one, and (B,) expected entropies in nats; float64.

    Raises:
        LaplaceLoRAError: The shapes do not fit, an entry is not finite, or there is no draw.
    """
    require_gaussian(mean, covariance, "monte_carlo")
    if points < 1:
        raise LaplaceLoRAError(f"{points} draws give no average; give at least 1.")
    mean, covariance = centred(mean, covariance)
    root = root_of(covariance)
    examples, classes = mean.shape
    probabilities, entropies = torch.zeros_like(mean), torch.zeros_like(mean[:, 0])
    generator = torch.Generator().manual_seed(_SEED)
    # The size of a block depends on K and points alone, and so do the draws.
    block = max(1, min(points, _BLOCK, _CHUNK // classes))
    for start in range(0, points, block):
        size = min(block, points - start)
        normal = torch.randn(size, classes, generator=generator, dtype=torch.float64).to(mean.device)
        for rows in torch.arange(examples, device=mean.device).split(max(1, _CHUNK // (block * classes))):
            log_softmax = torch.log_softmax(mean[rows, None] + normal @ root[rows], dim=2)
            softmax = log_softmax.exp()
            probabilities[rows] += softmax.sum(dim=1)
            entropies[rows] -= (softmax * log_softmax).sum(dim=(1, 2))
    return probabilities / probabilities.sum(dim=1, keepdim=True), entropies / points
