"""Expected softmax over Gaussian logits for many classes: one quasi-random net that all classes share."""

import torch
from torch import Tensor

from laplace_lora.predictive.gaussian import centred, principal_axes

_SOBOL_SEED = 0
# Largest number of elements of one temporary tensor.
_CHUNK = 2**20


def joint_integrals(mean: Tensor, covariance: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Average the softmax over a scrambled Sobol net along the principal axes of the logits' covariance.

    A rule per class (:mod:`laplace_lora.predictive.sequential`) costs K^2 factors per node; here it is K, for all
    classes together, so that many classes are better served by more nodes of this plainer kind. The axes go to the
    net's coordinates in the order of their variances, the first coordinates of a Sobol net being its best.

    Args:
        mean: (B, K) means, in logits.
        covariance: (B, K, K) covariances, in squared logits; of any rank.
        nodes: Nodes of the net.

    Returns:
        (B, K) E softmax_k and (B, K) E[-softmax_k log softmax_k] in nats, float64.
    """
    examples, classes = mean.shape
    # Without the common shift, which would take the best coordinate for nothing.
    variances, axes = principal_axes(centred(mean, covariance)[1])
    root = (axes * variances.sqrt()[:, None, :]).flip(2)[:, :, : classes - 1]
    probabilities, entropies = torch.zeros_like(mean), torch.zeros_like(mean)
    # A generator of its own: torch's global one is left alone.
    engine = torch.quasirandom.SobolEngine(classes - 1, scramble=True, seed=_SOBOL_SEED)
    block = min(nodes, 4096)
    for start in range(0, nodes, block):
        # The middle of the cell of width 1 / nodes: one-dimensional averages become as good as the midpoint rule's.
        cell = (engine.draw(min(block, nodes - start), dtype=torch.float64) * nodes).floor()
        normal = torch.special.ndtri((cell + 0.5) / nodes).to(mean.device)
        for rows in torch.arange(examples, device=mean.device).split(max(1, _CHUNK // (block * classes))):
            log_softmax = torch.log_softmax(mean[rows, None] + normal @ root[rows].mT, dim=2)
            softmax = log_softmax.exp()
            probabilities[rows] += softmax.sum(dim=1) / nodes
            entropies[rows] -= (softmax * log_softmax).sum(dim=1) / nodes
    return probabilities, entropies
