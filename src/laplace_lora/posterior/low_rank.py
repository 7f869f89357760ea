"""Low rank plus diagonal over all weight matrices jointly: P = W W^T + D + Delta.

With A = D + Delta, diagonal, and K = W^T A^-1 W (m x m), Woodbury's identity and the determinant lemma give

    J P^-1 J^T = J A^-1 J^T - (J A^-1 W) (I + K)^-1 (W^T A^-1 J^T)
    log det(P Delta^-1) = log det(A Delta^-1) + log det(I + K).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.errors import UnsupportedInputError
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.base import CovarianceAccumulator, KeptRows, Posterior, stacked_rows, standard_normal
from laplace_lora.posterior.spectrum import Grid

# Bytes of Cholesky factors that are kept, of the last priors asked for: 8 m^2 each.
_KEPT_BYTES = 1 << 28
_NO_SPECTRUM = "structure 'low_rank' has no one spectrum for all priors; use another structure."
# Weights whose rows of W are held in float64 at once.
_BLOCK = 1 << 16


class LowRankPosterior(Posterior):
    """The GGN's posterior by m directions of all matrices together, and the rest of its diagonal.

    Exact where the GGN's rank, at most N (K-1), is no larger than m. Bytes: 4 m + 8 for every weight (8 m + 8 with
    float64 models).
    """

    spectra = (".diagonal",)

    def __init__(self, shapes: Sequence[MatrixShape], factors: Sequence[Tensor], diagonals: Sequence[Tensor]) -> None:
        """Keep both parts.

        Args:
            shapes: One per matrix.
            factors: Per matrix its rows of W, (out * in, m).
            diagonals: Per matrix D, (out * in,), non-negative, float64.
        """
        super().__init__(shapes)
        self.factors = list(factors)
        self.diagonals = list(diagonals)
        self._roots: dict[tuple[float, ...], Tensor] = {}

    @classmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "LowRankPosterior":
        """See :meth:`Posterior.from_statistics`: ``factor`` holds rows of W, ``diagonal`` D."""
        return cls(shapes, statistics["factor"], statistics["diagonal"])

    def assign_groups(self, groups: Sequence[int]) -> None:
        """See :meth:`Posterior.assign_groups`."""
        super().assign_groups(groups)
        self._roots.clear()

    def accumulator(self, precision: Tensor, scales: Tensor | None = None) -> CovarianceAccumulator:
        """See :meth:`Posterior.accumulator`."""
        return _LowRankAccumulator(self, precision, scales)

    @property
    def has_spectrum(self) -> bool:
        """See :attr:`Posterior.has_spectrum`: never, since eigenvectors of D + W W^T + Delta turn with the prior."""
        return False

    def grid(self) -> Grid:
        """Refuse.

        Raises:
            UnsupportedInputError: Always.
        """
        raise UnsupportedInputError(_NO_SPECTRUM)

    def gather(self, jacobians: Mapping[int, Tensor], grid: Grid) -> Tensor:
        """Refuse.

        Raises:
            UnsupportedInputError: Always.
        """
        raise UnsupportedInputError(_NO_SPECTRUM)

    def inverses(self, precision: Tensor) -> list[Tensor]:
        """Return the diagonal of A^-1, per matrix (out * in,)."""
        deltas = self.matrix_precisions(precision)
        return [1.0 / (diagonal + delta) for diagonal, delta in zip(self.diagonals, deltas, strict=True)]

    def blocks(self, index: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield a matrix's rows of W, block by block in float64, so that copies stay small."""
        factor = self.factors[index]
        for start in range(0, len(factor), _BLOCK):
            columns = slice(start, start + _BLOCK)
            yield columns, factor[columns].double()

    def root(self, precision: Tensor) -> Tensor:
        """Return the lower Cholesky factor of I + K, (m, m)."""
        key = tuple(precision.tolist())
        if key not in self._roots:
            core = self._weighted_gram(self.inverses(precision))
            while len(self._roots) >= max(1, _KEPT_BYTES // core.nbytes):
                self._roots.pop(next(iter(self._roots)))
            self._roots[key] = torch.linalg.cholesky(torch.eye(len(core), dtype=core.dtype, device=core.device) + core)
        return self._roots[key]

    def _weighted_gram(self, weights: Sequence[Tensor | None]) -> Tensor:
        """Return sum_l W_l^T diag(w_l) W_l over the matrices that have weights."""
        size, like = self.factors[0].shape[1], self.diagonals[0]
        total = torch.zeros(size, size, dtype=torch.float64, device=like.device)
        for index, weight in enumerate(weights):
            if weight is not None:
                for columns, rows in self.blocks(index):
                    total += rows.mT @ (weight[columns, None] * rows)
        return total

    def log_determinant(self, precision: Tensor) -> float:
        """See :meth:`Posterior.log_determinant`."""
        deltas = self.matrix_precisions(precision)
        diagonal = sum(float(torch.log1p(d / delta).sum()) for d, delta in zip(self.diagonals, deltas, strict=True))
        return diagonal + 2.0 * float(self.root(precision).diagonal().log().sum())

    def effective_parameters(self, precision: Tensor) -> Tensor:
        """See :meth:`Posterior.effective_parameters`.

        Args:
            precision: Prior precision of each group.

        Returns:
            (G,) tr[D_g A_g^-1] + delta_g tr[(I + K)^-1 W_g^T A_g^-2 W_g].
        """
        inverses, root = self.inverses(precision), self.root(precision)
        found = torch.zeros(len(precision), dtype=torch.float64)
        for group, delta in enumerate(precision.tolist()):
            mine = [inverse if at == group else None for inverse, at in zip(inverses, self.groups, strict=True)]
            gram = self._weighted_gram([None if inverse is None else inverse.square() for inverse in mine])
            shares = torch.cholesky_solve(gram, root).diagonal().sum()
            pairs = ((d, inverse) for d, inverse in zip(self.diagonals, mine, strict=True) if inverse is not None)
            found[group] = sum(float((d * inverse).sum()) for d, inverse in pairs) + delta * float(shares)
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
        inverses, root = self.inverses(precision), self.root(precision)
        draws = [standard_normal((count, len(each)), each, generator) * each.sqrt() for each in inverses]
        residual = standard_normal((count, len(root)), root, generator)
        for index, draw in enumerate(draws):
            for columns, rows in self.blocks(index):
                residual += draw[:, columns] @ rows
        residual = torch.cholesky_solve(residual.mT, root).mT
        samples = []
        for index, (draw, inverse, shape) in enumerate(zip(draws, inverses, self.shapes, strict=True)):
            for columns, rows in self.blocks(index):
                draw[:, columns] -= residual @ rows.mT * inverse[columns]
            samples.append(draw.view(count, shape.out_features, shape.in_features))
        return samples

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Posterior.tensors`."""
        found = {}
        for shape, factor, diagonal in zip(self.shapes, self.factors, self.diagonals, strict=True):
            found[f"{shape.name}.factor"], found[f"{shape.name}.diagonal"] = factor, diagonal
        return found

    @classmethod
    def stored(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See :meth:`Posterior.stored`: as many directions everywhere as in the first factor."""
        directions = next((t.shape[1] for name, t in tensors.items() if name.endswith(".factor") and t.dim() == 2), 0)
        sizes: dict[str, tuple[int, ...]] = {}
        for shape in shapes:
            sizes[f"{shape.name}.factor"], sizes[f"{shape.name}.diagonal"] = (shape.size, directions), (shape.size,)
        return sizes

    @classmethod
    def from_tensors(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "LowRankPosterior":
        """See :meth:`Posterior.from_tensors`."""
        factors, diagonals = ([tensors[f"{s.name}.{kind}"] for s in shapes] for kind in ("factor", "diagonal"))
        return cls(shapes, factors, diagonals)


class _LowRankAccumulator(KeptRows):
    """Sums J A^-1 J^T and J A^-1 W over the matrices, for every scale of the prior."""

    def __init__(self, posterior: LowRankPosterior, precision: Tensor, scales: Tensor | None) -> None:
        super().__init__()
        self.posterior = posterior
        multiples = [1.0] if scales is None else scales.tolist()
        self.precisions = [multiple * precision for multiple in multiples]

    def covariance(self) -> Tensor:
        # The two terms cancel by the ratio of prior to posterior variance, 1e4 and more: products are float64.
        stacked = {index: stacked_rows(rows).flatten(start_dim=2).double() for index, rows in self._rows.items()}
        return torch.stack([self._at(precision, stacked) for precision in self.precisions])

    def _at(self, precision: Tensor, stacked: Mapping[int, Tensor]) -> Tensor:
        root, inverses = self.posterior.root(precision), self.posterior.inverses(precision)
        size, count, _ = stacked[0].shape
        total = torch.zeros(size, count, count, dtype=torch.float64, device=root.device)
        cross = torch.zeros(size * count, len(root), dtype=torch.float64, device=root.device)
        for index, jacobian in stacked.items():
            weighted = jacobian * inverses[index]
            total += torch.bmm(weighted, jacobian.mT)
            flat = weighted.flatten(end_dim=1)
            for columns, rows in self.posterior.blocks(index):
                cross += flat[:, columns] @ rows
        seen = torch.linalg.solve_triangular(root, cross.mT, upper=False).mT.reshape(size, count, -1)
        return total - torch.bmm(seen, seen.mT)
