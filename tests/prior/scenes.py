"""Gaussian logits of made-up examples at every prior: what tuning on held-out data starts from."""

import dataclasses

import torch
from torch import Tensor

from laplace_lora.posterior import Grid, Spectrum
from laplace_lora.prior import HeldOut


@dataclasses.dataclass(frozen=True)
class Scene:
    """Held-out examples, and their Jacobian terms in full.

    Attributes:
        held_out: As tuning takes them.
        eigenvalues: (G, m) of the likelihood's part.
        roots: (G, m, N, K) contributions: covariance = sum_gm r r^T / (e_gm + delta_g).
    """

    held_out: HeldOut
    eigenvalues: Tensor
    roots: Tensor

    def covariance(self, precision: Tensor) -> Tensor:
        """The covariance by plain sums, without nodes."""
        weights = 1.0 / (self.eigenvalues + precision[:, None])
        return torch.einsum("gm,gmni,gmnj->nij", weights, self.roots, self.roots)


def scene(examples: int, classes: int, groups: int = 1, seed: int = 0, confident: float = 4.0) -> Scene:
    """Draw examples whose labels follow a softmax of smaller logits than the mean says: an over-confident adapter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    terms = 12
    eigenvalues = 10.0 ** (3.0 * torch.rand(groups, terms, dtype=torch.float64, generator=generator))
    roots = 3.0 * normal(groups, terms, examples, classes)
    mean = confident * normal(examples, classes)
    labels = torch.multinomial(torch.softmax(mean / confident, dim=1), 1, generator=generator)[:, 0]
    grid = Grid.below(float(eigenvalues.max()))
    table = grid.empty(groups, (examples, classes, classes), torch.device("cpu"))
    for group in range(groups):
        products = roots[group, :, :, :, None] * roots[group, :, :, None, :]
        grid.gather(table[group], eigenvalues[group], products)
    return Scene(HeldOut(mean, Spectrum(grid.nodes, table), labels), eigenvalues, roots)
