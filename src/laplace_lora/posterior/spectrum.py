"""Covariances at every prior from one pass: each example's contributions, gathered by eigenvalue.

A prior precision delta enters a covariance by weights 1 / (e + delta) alone, e an eigenvalue of the likelihood's part.
Contributions are split once between the two nodes of a grid next to their eigenvalue; afterwards

    J P^-1 J^T = sum_groups sum_nodes C_gb / (e_b + delta_g)

at any precision of every prior group, without the model and without the dimension of the weights (DESIGN, section 2,
item 7). Shares keep 1/e and the whole: the sum is exact where delta is far below the eigenvalues and where it is far
above. Between, a term is too small by at most ((sqrt(q) - 1) / (sqrt(q) + 1))^2 of itself, q the ratio of two nodes:
2.3e-3.
"""

import dataclasses

import torch
from torch import Tensor

#: Nodes above zero, and the decades that they reach below the largest eigenvalue. Smaller eigenvalues are split between
#: zero and the first node, where a prior that is not itself next to nothing outweighs them all.
NODES, DECADES = 97, 8.0


@dataclasses.dataclass(frozen=True)
class Grid:
    """Eigenvalues that stand for those next to them.

    Attributes:
        nodes: (n,) rising float64, zero first.
    """

    nodes: Tensor

    @classmethod
    def below(cls, largest: float) -> "Grid":
        """Lay out a grid.

        Args:
            largest: Largest eigenvalue.

        Returns:
            The grid; zero alone where there is no curvature.
        """
        zero = torch.zeros(1, dtype=torch.float64)
        if not largest > 0.0:
            return cls(zero)
        exponents = torch.linspace(-DECADES, 0.0, NODES, dtype=torch.float64)
        return cls(torch.cat([zero, largest * 10.0**exponents]))

    def shares(self, eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
        """Split eigenvalues between neighbouring nodes.

        Args:
            eigenvalues: (m,) float64, from 0 to the last node.

        Returns:
            (m,) positions of the upper nodes, and (m,) their shares; the rest is that of the nodes before.
        """
        nodes = self.nodes.to(eigenvalues.device)
        upper = torch.searchsorted(nodes, eigenvalues).clamp(min=1, max=len(nodes) - 1)
        low, high = nodes[upper - 1], nodes[upper]
        # Next to zero 1/e cannot be kept, and e itself is.
        harmonic = high * (eigenvalues - low) / (eigenvalues.clamp(min=1e-300) * (high - low))
        return upper, torch.where(low > 0.0, harmonic, eigenvalues / high).clamp(0.0, 1.0)

    def empty(self, groups: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return a table without contributions.

        Args:
            groups: G, prior groups.
            shape: Of a contribution.
            device: Where to.

        Returns:
            (G, n, *shape) float64 zeros.
        """
        return torch.zeros(groups, len(self.nodes), *shape, dtype=torch.float64, device=device)

    def gather(self, table: Tensor, eigenvalues: Tensor, contributions: Tensor) -> None:
        """Add contributions to a group's table.

        Args:
            table: (n, ...) of one group, changed in place.
            eigenvalues: (m,) float64.
            contributions: (m, ...) one for each eigenvalue.
        """
        if len(self.nodes) == 1:
            table[0] += contributions.sum(dim=0)
            return
        upper, share = self.shares(eigenvalues)
        share = share.view(-1, *(1 for _ in contributions.shape[1:]))
        above = contributions * share
        table.index_add_(0, upper, above)
        table.index_add_(0, upper - 1, contributions - above)


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Gaussian outputs of N examples, at every prior.

    Attributes:
        nodes: (n,) float64 eigenvalues.
        table: (G, n, N, K, K) contributions in every prior group.
        scale: What covariances are multiplied by; see :mod:`laplace_lora.prior.noise`.
    """

    nodes: Tensor
    table: Tensor
    scale: float = 1.0

    def covariance(self, precision: Tensor) -> Tensor:
        """Return covariances at one prior.

        Args:
            precision: (G,) prior precisions, in 1 / weight^2.

        Returns:
            (N, K, K) float64, positive semi-definite up to rounding.
        """
        weights = (self.nodes + precision.to(self.nodes)[:, None]).reciprocal().to(self.table)
        return self.scale * torch.tensordot(weights, self.table, dims=2).double()
