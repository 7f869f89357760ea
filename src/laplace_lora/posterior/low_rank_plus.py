"""Low rank over all weight matrices jointly, plus what is diagonal in a basis of each: P = W W^T + E + Delta.

E is the likelihood part of an :class:`~laplace_lora.posterior.eigen.EigenPosterior`. With A = E + Delta, whose inverse
and determinant are known, and K = W^T A^-1 W (m x m), Woodbury's identity and the determinant lemma give

    J P^-1 J^T = J A^-1 J^T - (J A^-1 W) (I + K)^-1 (W^T A^-1 J^T)
    log det(P Delta^-1) = log det(A Delta^-1) + log det(I + K)

for any Delta that is constant on each matrix.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from laplace_lora.errors import UnsupportedInputError
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.base import CovarianceAccumulator, KeptRows, Posterior, stacked_rows, standard_normal
from laplace_lora.posterior.eigen import EigenPosterior
from laplace_lora.posterior.spectrum import Grid

# Bytes of Cholesky factors that are kept, of the last priors asked for: 8 m^2 each.
_KEPT_BYTES = 1 << 28
# Weights whose rows of W are held in float64 at once.
_BLOCK = 1 << 16
# Numbers of A^-1 W that are held at once.
_SOLVED = 1 << 24

#: Of one matrix: a tensor for each part of its space.
Weights = list[Tensor]


class LowRankPlusPosterior(Posterior):
    """W W^T and a block-diagonal rest; a structure says where they come from, and how they are stored.

    Attributes:
        structure: Name of the structure.
    """

    structure: ClassVar[str]
    joint = True

    def __init__(self, shapes: Sequence[MatrixShape], factors: Sequence[Tensor], rest: EigenPosterior) -> None:
        """Keep both parts.

        Args:
            shapes: One per matrix.
            factors: Per matrix its rows of W, (out * in, m).
            rest: E, whose bases are orthonormal in float64: what it adds is taken off again, up to the ratio of
                posterior to prior variance.
        """
        super().__init__(shapes)
        self.factors = list(factors)
        self.rest = rest
        self._roots: dict[tuple[float, ...], Tensor] = {}

    def assign_groups(self, groups: Sequence[int]) -> None:
        """See :meth:`Posterior.assign_groups`."""
        super().assign_groups(groups)
        self.rest.assign_groups(groups)
        self._roots.clear()

    def accumulator(self, precision: Tensor, scales: Tensor | None = None) -> CovarianceAccumulator:
        """See :meth:`Posterior.accumulator`."""
        return _LowRankPlusAccumulator(self, precision, scales)

    @property
    def has_spectrum(self) -> bool:
        """See :attr:`Posterior.has_spectrum`: never, since eigenvectors of E + W W^T + Delta turn with the prior."""
        return False

    def grid(self) -> Grid:
        """Refuse.

        Raises:
            UnsupportedInputError: Always.
        """
        raise UnsupportedInputError(
            f"structure {self.structure!r} has no one spectrum for all priors; use another structure."
        )

    def gather(self, jacobians: Mapping[int, Tensor], grid: Grid) -> Tensor:
        """Refuse.

        Raises:
            UnsupportedInputError: Always.
        """
        raise UnsupportedInputError(
            f"structure {self.structure!r} has no one spectrum for all priors; use another structure."
        )

    def weights(self, precision: Tensor, power: float = -1.0) -> list[Weights]:
        """Return the eigenvalues of a power of A.

        Args:
            precision: Prior precision of each group.
            power: The power.

        Returns:
            Per matrix one tensor for each part of its space.
        """
        deltas = enumerate(self.matrix_precisions(precision))
        return [[(part.eigenvalues + delta) ** power for part in self.rest.parts(index)] for index, delta in deltas]

    def multiplied(self, index: int, coordinates: Sequence[Tensor], weights: Weights) -> Tensor:
        """Weight the coordinates of matrices in every part, and rotate them back.

        Args:
            index: Position of the weight matrix.
            coordinates: As ``rest.rotate`` returns them, float64.
            weights: Of the matrix, from :meth:`weights`.

        Returns:
            (n, out, in) float64: a power of A times the matrices.
        """
        return self.rest.rotate_back(index, [c * w for c, w in zip(coordinates, weights, strict=True)])

    def along(self, index: int, matrices: Tensor) -> Tensor:
        """Return products with a matrix's rows of W.

        Args:
            index: Position of the weight matrix.
            matrices: (n, out, in) float64.

        Returns:
            (n, m).
        """
        flat = matrices.flatten(start_dim=1)
        found = flat.new_zeros(len(flat), self.factors[index].shape[1])
        for columns, rows in self.blocks(index):
            found += flat[:, columns] @ rows
        return found

    def blocks(self, index: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield a matrix's rows of W, block by block in float64, so that copies stay small.

        Args:
            index: Position of the weight matrix.

        Yields:
            Which rows, and the rows.
        """
        factor = self.factors[index]
        for start in range(0, len(factor), _BLOCK):
            columns = slice(start, start + _BLOCK)
            yield columns, factor[columns].double()

    def root(self, precision: Tensor) -> Tensor:
        """Return the lower Cholesky factor of I + K, (m, m).

        Args:
            precision: Prior precision of each group.

        Returns:
            The factor, float64; kept for the last priors.
        """
        key = tuple(precision.tolist())
        if key not in self._roots:
            core = self.gram(dict(enumerate(self.weights(precision))))
            while len(self._roots) >= max(1, _KEPT_BYTES // core.nbytes):
                self._roots.pop(next(iter(self._roots)))
            self._roots[key] = torch.linalg.cholesky(torch.eye(len(core), dtype=core.dtype, device=core.device) + core)
        return self._roots[key]

    def gram(self, weights: Mapping[int, Weights]) -> Tensor:
        """Return sum_l W_l^T A_l^p W_l, a few directions at a time.

        Args:
            weights: By position of those matrices l that are summed over, from :meth:`weights` for the power p.

        Returns:
            (m, m) float64.
        """
        size = self.factors[0].shape[1]
        total = torch.zeros(size, size, dtype=torch.float64, device=self.device)
        for index, weight in weights.items():
            shape, columns = self.shapes[index], self.factors[index].mT
            at_once = max(1, _SOLVED // shape.size)
            for rows, some in zip(total.split(at_once), columns.split(at_once), strict=True):
                matrices = some.double().view(-1, shape.out_features, shape.in_features)
                rows += self.along(index, self.multiplied(index, self.rest.rotate(index, matrices), weight))
        return 0.5 * (total + total.mT)

    def log_determinant(self, precision: Tensor) -> float:
        """See :meth:`Posterior.log_determinant`."""
        return self.rest.log_determinant(precision) + 2.0 * float(self.root(precision).diagonal().log().sum())

    def effective_parameters(self, precision: Tensor) -> Tensor:
        """See :meth:`Posterior.effective_parameters`.

        Args:
            precision: Prior precision of each group.

        Returns:
            (G,) tr[E_g A_g^-1] + delta_g tr[(I + K)^-1 W_g^T A_g^-2 W_g].
        """
        root, squares = self.root(precision), self.weights(precision, -2.0)
        found = self.rest.effective_parameters(precision)
        for group, delta in enumerate(precision.tolist()):
            gram = self.gram({index: squares[index] for index, at in enumerate(self.groups) if at == group})
            found[group] += delta * float(torch.cholesky_solve(gram, root).diagonal().sum())
        return found

    def sample(self, precision: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
        """See :meth:`Posterior.sample`.

        A draw w from N(0, A^-1) is corrected by its residual on the directions (Matheron's rule):
        theta = w - A^-1 W (I + K)^-1 (W^T w + z), z ~ N(0, I).

        Args:
            precision: Prior precision of each group.
            count: How many.
            generator: Source of randomness, on the CPU.

        Returns:
            One (count, out, in) tensor per matrix.
        """
        root, weights = self.root(precision), self.weights(precision)
        draws = self.rest.sample(precision, count, generator)
        residual = standard_normal((count, len(root)), root, generator)
        for index, draw in enumerate(draws):
            residual += self.along(index, draw)
        residual = torch.cholesky_solve(residual.mT, root).mT
        samples = []
        for index, draw in enumerate(draws):
            moved = torch.cat([residual @ rows.mT for _, rows in self.blocks(index)], dim=1).view_as(draw)
            samples.append(draw - self.multiplied(index, self.rest.rotate(index, moved), weights[index]))
        return samples

    def named_factors(self) -> dict[str, Tensor]:
        """Return W as it is stored, by matrix."""
        return {f"{shape.name}.factor": factor for shape, factor in zip(self.shapes, self.factors, strict=True)}

    @staticmethod
    def stored_factors(shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Say what :meth:`named_factors` holds.

        Args:
            shapes: One per matrix.
            tensors: What a file holds.

        Returns:
            Names to shapes: as many directions everywhere as in the first factor, and at least one.
        """
        found = (t.shape[1] for name, t in tensors.items() if name.endswith(".factor") and t.dim() == 2)
        directions = max(1, next(found, 1))
        return {f"{shape.name}.factor": (shape.size, directions) for shape in shapes}


class _LowRankPlusAccumulator(KeptRows):
    """Sums J A^-1 J^T and J A^-1 W over the matrices, for every scale of the prior."""

    def __init__(self, posterior: LowRankPlusPosterior, precision: Tensor, scales: Tensor | None) -> None:
        super().__init__()
        self.posterior = posterior
        multiples = [1.0] if scales is None else scales.tolist()
        self.precisions = [multiple * precision for multiple in multiples]

    def covariance(self) -> Tensor:
        posterior, (size, count) = self.posterior, (len(self._rows[0][0]), len(self._rows[0]))
        roots = [posterior.root(precision) for precision in self.precisions]
        weights = [posterior.weights(precision) for precision in self.precisions]
        totals = [root.new_zeros(size, count, count) for root in roots]
        crosses = [root.new_zeros(size * count, len(root)) for root in roots]
        for index, rows in self._rows.items():
            # The two terms cancel by the ratio of prior to posterior variance, 1e4 and more: products are float64.
            jacobians = stacked_rows(rows).flatten(end_dim=1).double()
            coordinates = posterior.rest.rotate(index, jacobians)
            stacked = jacobians.reshape(size, count, -1)
            for total, cross, weight in zip(totals, crosses, weights, strict=True):
                solved = posterior.multiplied(index, coordinates, weight[index])
                total += torch.bmm(solved.reshape(size, count, -1), stacked.mT)
                cross += posterior.along(index, solved)
        found = []
        for total, cross, root in zip(totals, crosses, roots, strict=True):
            seen = torch.linalg.solve_triangular(root, cross.mT, upper=False).mT.reshape(size, count, -1)
            found.append(0.5 * (total + total.mT) - torch.bmm(seen, seen.mT))
        return torch.stack(found)
