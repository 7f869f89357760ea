"""Expected softmax over Gaussian logits as a differentiable function: for tuning, where means over examples count."""

import functools

import torch
from torch import Tensor

from laplace_lora.likelihoods import contrast_basis

_SOBOL_SEED = 0
# Added to the covariance's diagonal, over its largest entry: what its Cholesky factor needs where the rank is short.
_JITTER = 1e-9
# Logits of absent options: far below all others, and no infinity for derivatives to trip over.
_ABSENT = -1e4


def nodes_for(classes: int) -> int:
    """Return the nodes at which a mean of log p over a hundred examples and more is right to 1e-3.

    So it is up to standard deviations of 10 logits; at 30, to 2e-3.

    Args:
        classes: K.

    Returns:
        A power of two.
    """
    return 256 if classes == 2 else 2048 if classes <= 4 else 8192


def smooth_probabilities(mean: Tensor, covariance: Tensor, nodes: int | None = None) -> Tensor:
    """Average softmax(f) over f ~ N(mean, covariance), with derivatives by both.

    The same quasi-random net serves all examples: a scrambled Sobol net, with a single contrast the middles of cells of
    equal probability. A probability of one example is right to about 1e-2, means over examples to 1e-3;
    :func:`laplace_lora.predictive.expected_softmax` is for predictions.

    Args:
        mean: (N, K) logits, -inf for absent options.
        covariance: (N, K, K); only that of differences matters.
        nodes: Number of nodes; :func:`nodes_for` if not given.

    Returns:
        (N, K) probabilities, float64.
    """
    mean, covariance = mean.double(), covariance.double()
    classes = mean.shape[1]
    nodes = nodes or nodes_for(classes)
    contrasts = contrast_basis(classes).to(mean.device)
    between = contrasts.T @ covariance @ contrasts
    largest = between.detach().diagonal(dim1=1, dim2=2).amax(dim=1).clamp(min=1e-12)
    identity = torch.eye(classes - 1, dtype=torch.float64, device=mean.device)
    root = torch.linalg.cholesky(between + (_JITTER * largest)[:, None, None] * identity)
    logits = (
        torch.where(torch.isfinite(mean), mean, _ABSENT)[:, None]
        + _normal(classes - 1, nodes, str(mean.device)) @ (contrasts @ root).mT
    )
    return torch.softmax(logits, dim=-1).mean(dim=1)


@functools.lru_cache(maxsize=8)
def _normal(dimensions: int, nodes: int, device: str) -> Tensor:
    if dimensions == 1:
        cell = torch.arange(nodes, dtype=torch.float64)[:, None]
    else:
        # A generator of its own: torch's global one is left alone.
        engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=_SOBOL_SEED)
        cell = (engine.draw(nodes, dtype=torch.float64) * nodes).floor()
    return torch.special.ndtri((cell + 0.5) / nodes).to(device)
