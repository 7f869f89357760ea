"""Structures that are diagonal in a fixed orthonormal basis of each matrix: P_l = Q diag(e) Q^T + delta_l I.

All of them share their algebra; a structure only says how to rotate into and out of its basis. A basis need not be
written out: a part of the weights' space in which all directions of a row have one eigenvalue is given by its
orthogonal projection. The prior enters the weights 1 / (e + delta) alone, never the basis. Sums of positive terms
throughout, so that covariances are positive semi-definite by construction (DESIGN, section 2, item 6).
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.posterior.base import CovarianceAccumulator, KeptRows, Posterior, stacked_rows, standard_normal
from laplace_lora.posterior.spectrum import Grid

# Elements of the products of coordinates that are held at once.
_BLOCK = 2**22


@dataclasses.dataclass(frozen=True)
class Part:
    """Eigenvalues of one part of a weight matrix's space.

    Attributes:
        eigenvalues: Non-negative, float64: (a, b), one for each coordinate of the part; or, of a tail, (a, 1), one for
            each row of coordinates.
        directions: Number of eigenvectors that each stands for: 1, or for a tail the dimension of its rows, which
            their coordinates, written in more numbers than that, do not show.
    """

    eigenvalues: Tensor
    directions: int = 1


class EigenPosterior(Posterior):
    """A block-diagonal posterior with known eigenspaces."""

    @abc.abstractmethod
    def parts(self, index: int) -> list[Part]:
        """Return the orthogonal parts of a matrix's space and their eigenvalues."""

    @abc.abstractmethod
    def rotate(self, index: int, matrices: Tensor) -> list[Tensor]:
        """Return the coordinates (B, a, b) of (B, out, in) matrices in every part."""

    @abc.abstractmethod
    def rotate_back(self, index: int, parts: Sequence[Tensor]) -> Tensor:
        """Undo :meth:`rotate`."""

    @property
    def eigenvalues(self) -> list[Tensor]:
        """Per matrix all eigenvalues that have coordinates of their own: those of the first part."""
        return [self.parts(index)[0].eigenvalues for index in range(len(self.shapes))]

    def accumulator(self, precision: Tensor, scales: Tensor | None = None) -> CovarianceAccumulator:
        """See :meth:`Posterior.accumulator`."""
        return _EigenAccumulator(self, precision, scales)

    def grid(self) -> Grid:
        """See :meth:`Posterior.grid`."""
        return Grid.below(
            max(float(part.eigenvalues.max()) for index in range(len(self.shapes)) for part in self.parts(index))
        )

    def gather(self, jacobians: Mapping[int, Tensor], grid: Grid) -> Tensor:
        """See :meth:`Posterior.gather`: every coordinate of every part by its eigenvalue."""
        first = next(iter(jacobians.values()))
        size, count = first.shape[:2]
        table = grid.empty(1 + max(self.groups), (size, count, count), first.device)
        for index, matrices in jacobians.items():
            rotated = self.rotate(index, matrices.flatten(end_dim=1))
            for coordinates, part in zip(rotated, self.parts(index), strict=True):
                at = coordinates.unflatten(0, (size, count)).to(table)
                values = part.eigenvalues.to(table)
                if values.shape[1] < at.shape[-1]:  # one eigenvalue for each row of coordinates
                    products = torch.einsum("bmap,bnap->abmn", at, at)
                    grid.gather(table[self.groups[index]], values[:, 0], products)
                    continue
                flat = at.flatten(start_dim=2).permute(2, 0, 1)
                block = max(1, _BLOCK // (size * count**2))
                for some, e in zip(flat.split(block), values.flatten().split(block), strict=True):
                    grid.gather(table[self.groups[index]], e, some[:, :, :, None] * some[:, :, None, :])
        return table

    def log_determinant(self, precision: Tensor) -> float:
        """See :meth:`Posterior.log_determinant`: sum of log1p(e / delta)."""
        return sum(
            part.directions * float(torch.log1p(part.eigenvalues / delta).sum())
            for _, delta, part in self._all_parts(precision)
        )

    def effective_parameters(self, precision: Tensor) -> Tensor:
        """See :meth:`Posterior.effective_parameters`: sum of e / (e + delta)."""
        sums = torch.zeros(len(precision), dtype=torch.float64)
        for index, delta, part in self._all_parts(precision):
            shares = (part.eigenvalues / (part.eigenvalues + delta)).sum().cpu()
            sums[self.groups[index]] += part.directions * shares
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
        for index, (shape, delta) in enumerate(zip(self.shapes, self.matrix_precisions(precision), strict=True)):
            parts = self.parts(index)
            size = (count, shape.out_features, shape.in_features)
            rotated = self.rotate(index, standard_normal(size, parts[0].eigenvalues, generator))
            weighted = [r * torch.rsqrt(part.eigenvalues + delta) for r, part in zip(rotated, parts, strict=True)]
            samples.append(self.rotate_back(index, weighted))
        return samples

    def _all_parts(self, precision: Tensor) -> Iterator[tuple[int, float, Part]]:
        for index, delta in enumerate(self.matrix_precisions(precision)):
            for part in self.parts(index):
                yield index, delta, part


class _EigenAccumulator(KeptRows):
    def __init__(self, posterior: EigenPosterior, precision: Tensor, scales: Tensor | None) -> None:
        super().__init__()
        self.posterior = posterior
        self.precision = posterior.matrix_precisions(precision)
        self.scales = torch.ones(1, dtype=torch.float64) if scales is None else scales

    def covariance(self) -> Tensor:
        first = next(iter(self._rows.values()))
        size, count = first[0].shape[0], len(first)
        total = torch.zeros(len(self.scales), size, count, count, dtype=torch.float64, device=first[0].device)
        for index, rows in self._rows.items():
            # All rows at once: a matrix's eigenvectors are read once, and there are fewer, larger products.
            rotated = self.posterior.rotate(index, stacked_rows(rows).flatten(end_dim=1))
            for coordinates, part in zip(rotated, self.posterior.parts(index), strict=True):
                at = coordinates.unflatten(0, (size, count))
                precisions = [part.eigenvalues + scale * self.precision[index] for scale in self.scales.tolist()]
                if part.directions > 1 and len(precisions) > 1:
                    # One weight per row of coordinates: products first, once for all scales.
                    products = torch.einsum("bmap,bnap->abmn", at, at).to(total)
                    for s, precision in enumerate(precisions):
                        total[s] += torch.tensordot(precision[:, 0].reciprocal(), products, dims=1)
                    continue
                for s, precision in enumerate(precisions):
                    weighted = (at * precision.rsqrt().to(at.dtype)).flatten(start_dim=2)
                    total[s] += torch.bmm(weighted, weighted.mT)
        return total
