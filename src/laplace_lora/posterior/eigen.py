"""Structures that are diagonal in a fixed orthonormal basis of each matrix: P_l = Q diag(e) Q^T + delta_l I.

All of them share their algebra; a structure only says how to rotate into and out of its basis. The prior
enters the weights 1 / (e + delta) alone, never the basis. Sums of positive terms throughout, so that
covariances are positive semi-definite by construction (DESIGN, section 2, item 6).
"""

import abc
from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.base import CovarianceAccumulator, Posterior, standard_normal


class EigenPosterior(Posterior):
    """A block-diagonal posterior with known eigenvectors."""

    def __init__(self, shapes: Sequence[MatrixShape], eigenvalues: Sequence[Tensor]) -> None:
        """Keep the eigenvalues of the likelihood part.

        Args:
            shapes: One per matrix.
            eigenvalues: One non-negative (out, in) float64 tensor per matrix.
        """
        super().__init__(shapes)
        self.eigenvalues = list(eigenvalues)

    @abc.abstractmethod
    def rotate(self, index: int, matrices: Tensor) -> Tensor:
        """Express (B, out, in) matrices in the eigenbasis; the shape stays."""

    @abc.abstractmethod
    def rotate_back(self, index: int, matrices: Tensor) -> Tensor:
        """Undo :meth:`rotate`."""

    def accumulator(self, precision: Tensor, scales: Tensor | None = None) -> CovarianceAccumulator:
        """See :meth:`Posterior.accumulator`."""
        return _EigenAccumulator(self, precision, scales)

    def log_determinant(self, precision: Tensor) -> float:
        """See :meth:`Posterior.log_determinant`: sum of log1p(e / delta)."""
        total = 0.0
        for eigenvalues, delta in zip(self.eigenvalues, self.matrix_precisions(precision), strict=True):
            total += float(torch.log1p(eigenvalues / delta).sum())
        return total

    def effective_parameters(self, precision: Tensor) -> Tensor:
        """See :meth:`Posterior.effective_parameters`: sum of e / (e + delta)."""
        sums = torch.zeros(len(precision), dtype=torch.float64)
        for eigenvalues, delta, group in zip(
            self.eigenvalues, self.matrix_precisions(precision), self.groups, strict=True
        ):
            sums[group] += (eigenvalues / (eigenvalues + delta)).sum().cpu()
        return sums

    def sample(self, precision: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
        """See :meth:`Posterior.sample`: white noise times the symmetric root P^-1/2.

        That root is a continuous function of P, which eigenvectors are not: a difference of rounding in the curvature
        makes one of rounding in the samples.

        Args:
            precision: Prior precision of each group.
            count: How many.
            generator: Source of randomness, on the CPU.

        Returns:
            One (count, out, in) tensor per matrix.
        """
        samples = []
        for index, (eigenvalues, delta) in enumerate(
            zip(self.eigenvalues, self.matrix_precisions(precision), strict=True)
        ):
            noise = standard_normal((count, *eigenvalues.shape), eigenvalues, generator)
            weighted = self.rotate(index, noise) * torch.rsqrt(eigenvalues + delta)
            samples.append(self.rotate_back(index, weighted))
        return samples


class _EigenAccumulator(CovarianceAccumulator):
    """Keeps the Jacobians: 4 B M P bytes for B examples, M rows and P weights in float32."""

    def __init__(self, posterior: EigenPosterior, precision: Tensor, scales: Tensor | None) -> None:
        self.posterior = posterior
        self.precision = posterior.matrix_precisions(precision)
        self.scales = torch.ones(1, dtype=torch.float64) if scales is None else scales
        self._rows: dict[int, list[Tensor]] = {}

    def add(self, index: int, row: int, jacobian: Tensor) -> None:
        rows = self._rows.setdefault(index, [])
        assert row == len(rows), "rows come in order"
        rows.append(jacobian)

    def covariance(self) -> Tensor:
        first = next(iter(self._rows.values()))
        size, count = first[0].shape[0], len(first)
        total = torch.zeros(len(self.scales), size, count, count, dtype=torch.float64, device=first[0].device)
        for index, rows in self._rows.items():
            # All rows at once: a matrix's eigenvectors are read once, and there are fewer, larger products.
            rotated = self.posterior.rotate(index, torch.cat(rows)).unflatten(0, (count, size))
            for s, scale in enumerate(self.scales.tolist()):
                weights = (self.posterior.eigenvalues[index] + scale * self.precision[index]).rsqrt()
                weighted = (rotated * weights.to(rotated.dtype)).flatten(start_dim=2)
                total[s] += torch.einsum("mbp,nbp->bmn", weighted, weighted).to(total)
        return total
