"""The full GGN over all weight matrices jointly, through the Gram matrix of its rows.

With Phi = stack_n R_n^T J_n (M rows) the posterior precision is P = Phi^T Phi + Delta, and everything asked
of it follows from the M x M matrix K = sum_l Phi_l Phi_l^T / delta_l (Woodbury; DESIGN, section 2, item 9):

    J P^-1 J^T = J Delta^-1 J^T - (J Delta^-1 Phi^T) (I + K)^-1 (Phi Delta^-1 J^T)
    log det(P Delta^-1) = log det(I + K)
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.errors import UnsupportedInputError
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.base import CovarianceAccumulator, Posterior, standard_normal
from laplace_lora.posterior.spectrum import Grid

# Smaller eigenvalues of the Gram matrix, over the largest, are rounding.
_NO_CURVATURE = 1e-13


class ExactPosterior(Posterior):
    """The GGN's posterior without any approximation of its structure.

    Memory: rows 4 M P bytes (8 in float64), Gram matrices 8 M^2 bytes for each prior group
    (two more while K is decomposed). Rows are kept in the Jacobians' dtype, Gram matrices are float64.
    """

    def __init__(self, shapes: Sequence[MatrixShape], rows: Sequence[Tensor]) -> None:
        """Keep the rows.

        Args:
            shapes: One per matrix.
            rows: Per matrix Phi_l, (M, out * in).
        """
        super().__init__(shapes)
        self.rows = list(rows)
        self._grams: list[Tensor] | None = None
        self._decomposed: tuple[tuple[float, ...], Tensor, Tensor] | None = None

    @classmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "ExactPosterior":
        """See :meth:`Posterior.from_statistics`: ``rows`` holds Phi_l, (M, out * in) in the Jacobians' dtype."""
        return cls(shapes, statistics["rows"])

    def accumulator(self, precision: Tensor, scales: Tensor | None = None) -> CovarianceAccumulator:
        """See :meth:`Posterior.accumulator`."""
        return _ExactAccumulator(self, precision, scales)

    @property
    def has_spectrum(self) -> bool:
        """See :attr:`Posterior.has_spectrum`: with one prior precision for all."""
        return not max(self.groups)

    def grid(self) -> Grid:
        """See :meth:`Posterior.grid`.

        Returns:
            The grid.

        Raises:
            UnsupportedInputError: Prior groups have precisions of their own, and with them eigenvectors.
        """
        if not self.has_spectrum:
            raise UnsupportedInputError(
                "structure 'exact' has one spectrum for one prior precision; use prior_groups='global', or another "
                "structure."
            )
        values, _ = self.decompose(torch.ones(1, dtype=torch.float64))
        return Grid.below(float(values.max()))

    def gather(self, jacobians: Mapping[int, Tensor], grid: Grid) -> Tensor:
        """See :meth:`Posterior.gather`.

        With K = Phi Phi^T = U diag(e) U^T and r_i the coordinates of J Phi^T along u_i, the covariance is
        sum_i (r_i r_i^T / e_i) / (e_i + delta) + (J J^T - sum_i r_i r_i^T / e_i) / delta: what the rows do not span has
        no curvature.

        Args:
            jacobians: (B, M, out, in) of every weight matrix.
            grid: From :meth:`grid`.

        Returns:
            (1, n, B, M, M) float64.
        """
        values, vectors = self.decompose(torch.ones(1, dtype=torch.float64))
        first = next(iter(jacobians.values()))
        size, count = first.shape[:2]
        table = grid.empty(1, (size, count, count), first.device)
        cross = torch.zeros(size * count, len(values), dtype=torch.float64, device=first.device)
        for index, matrices in jacobians.items():
            flat, phi = matrices.reshape(size, count, -1).double(), self.rows[index]
            table[0, 0] += flat @ flat.mT
            for columns in _column_blocks(phi):
                part = flat.flatten(end_dim=1)[:, columns]
                cross += part @ phi[:, columns].to(part).T
        rotated = (cross @ vectors.to(cross)).view(size, count, -1).permute(2, 0, 1)
        known = values > _NO_CURVATURE * values.max()
        values = values[known].to(cross)
        scaled = rotated[known.to(cross.device)] / values[:, None, None].sqrt()
        block = max(1, (1 << 22) // (size * count**2))
        for some, e in zip(scaled.split(block), values.split(block), strict=True):
            products = some[:, :, :, None] * some[:, :, None, :]
            table[0, 0] -= products.sum(dim=0)
            grid.gather(table[0], e, products)
        return table

    def log_determinant(self, precision: Tensor) -> float:
        """See :meth:`Posterior.log_determinant`."""
        values, _ = self.decompose(precision)
        return float(torch.log1p(values).sum())

    def effective_parameters(self, precision: Tensor) -> Tensor:
        """See :meth:`Posterior.effective_parameters`.

        Args:
            precision: Prior precision of each group.

        Returns:
            (G,) tr[Phi_g Phi_g^T (I + K)^-1] / delta_g.
        """
        values, vectors = self.decompose(precision)
        if len(precision) == 1:
            return (values / (1.0 + values)).sum().cpu()[None]
        gammas = []
        for gram, delta in zip(self.grams(), precision.tolist(), strict=True):
            rotated = (vectors * (gram @ vectors)).sum(dim=0)
            gammas.append((rotated / (1.0 + values)).sum().cpu() / delta)
        return torch.stack(gammas)

    def sample(self, precision: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
        """See :meth:`Posterior.sample`.

        A prior draw is corrected by its residual on the rows (Matheron's rule):
        theta = w - Delta^-1 Phi^T (I + K)^-1 (Phi w + z), w ~ N(0, Delta^-1), z ~ N(0, I).

        Args:
            precision: Prior precision of each group.
            count: How many.
            generator: Source of randomness, on the CPU.

        Returns:
            One (count, out, in) tensor per matrix.
        """
        values, vectors = self.decompose(precision)
        prior = [
            standard_normal((count, rows.shape[1]), vectors, generator) * delta**-0.5
            for rows, delta in zip(self.rows, self.matrix_precisions(precision), strict=True)
        ]
        residual = standard_normal((count, len(values)), vectors, generator)
        for draw, rows in zip(prior, self.rows, strict=True):
            residual += draw @ rows.double().T
        residual = (residual @ vectors / (1.0 + values)) @ vectors.T
        samples = []
        deltas = self.matrix_precisions(precision)
        for draw, rows, delta, shape in zip(prior, self.rows, deltas, self.shapes, strict=True):
            moved = draw - residual @ rows.double() / delta
            samples.append(moved.view(count, shape.out_features, shape.in_features))
        return samples

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Posterior.tensors`."""
        return {f"{shape.name}.rows": rows for shape, rows in zip(self.shapes, self.rows, strict=True)}

    @classmethod
    def stored(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See :meth:`Posterior.stored`: as many rows everywhere as in the first tensor."""
        rows = next((len(tensor) for tensor in tensors.values() if tensor.dim()), 0)
        return {f"{shape.name}.rows": (rows, shape.size) for shape in shapes}

    @classmethod
    def from_tensors(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "ExactPosterior":
        """See :meth:`Posterior.from_tensors`."""
        return cls(shapes, [tensors[f"{shape.name}.rows"] for shape in shapes])

    def assign_groups(self, groups: Sequence[int]) -> None:
        """See :meth:`Posterior.assign_groups`."""
        super().assign_groups(groups)
        self._grams = self._decomposed = None

    def grams(self) -> list[Tensor]:
        """Return Phi_g Phi_g^T for every prior group, computed once.

        Returns:
            (M, M) float64 matrices.
        """
        if self._grams is None:
            count, like = self.rows[0].shape[0], self.rows[0]
            sums = [
                torch.zeros(count, count, dtype=torch.float64, device=like.device) for _ in range(1 + max(self.groups))
            ]
            for rows, group in zip(self.rows, self.groups, strict=True):
                for columns in _column_blocks(rows):
                    part = rows[:, columns].double()
                    sums[group] += part @ part.T
            self._grams = sums
        return self._grams

    def decompose(self, precision: Tensor) -> tuple[Tensor, Tensor]:
        """Decompose K for a prior, or return the decomposition at hand.

        Args:
            precision: Prior precision of each group.

        Returns:
            Eigenvalues (M,), not below 0, and eigenvectors (M, M) of K, float64.
        """
        key = tuple(precision.tolist())
        # One precision for all only scales K: its eigenvectors are the plain Gram matrix's.
        divisors = (1.0,) if len(key) == 1 else key
        if self._decomposed is None or self._decomposed[0] != divisors:
            total = torch.zeros_like(self.grams()[0])
            for gram, divisor in zip(self.grams(), divisors, strict=True):
                total += gram / divisor
            values, vectors = torch.linalg.eigh(total)
            self._decomposed = (divisors, values.clamp(min=0.0), vectors)
        _, values, vectors = self._decomposed
        return (values / key[0] if len(key) == 1 else values), vectors


class _ExactAccumulator(CovarianceAccumulator):
    """Sums J Delta^-1 J^T and J Delta^-1 Phi^T over the matrices."""

    def __init__(self, posterior: ExactPosterior, precision: Tensor, scales: Tensor | None) -> None:
        self.posterior = posterior
        self.precision = precision
        self.deltas = posterior.matrix_precisions(precision)
        self.scales = torch.ones(1, dtype=torch.float64) if scales is None else scales
        self._rows: dict[int, list[Tensor]] = {}

    def add(self, index: int, row: int, jacobian: Tensor) -> None:
        rows = self._rows.setdefault(index, [])
        assert row == len(rows), "rows come in order"
        rows.append(jacobian.flatten(start_dim=1))

    def covariance(self) -> Tensor:
        values, vectors = self.posterior.decompose(self.precision)
        first = self._rows[0][0]
        size, count = first.shape[0], len(self._rows[0])
        prior = torch.zeros(size, count, count, dtype=torch.float64, device=first.device)
        cross = torch.zeros(size * count, len(values), dtype=torch.float64, device=first.device)
        for index, rows in self._rows.items():
            # The two terms below cancel by the ratio of prior to posterior variance, 1e4 and more:
            # products are float64 although rows are not.
            stacked = torch.stack(rows, dim=1).double()
            delta, phi = self.deltas[index], self.posterior.rows[index]
            prior += torch.bmm(stacked, stacked.transpose(1, 2)) / delta
            flat = stacked.flatten(end_dim=1)
            for columns in _column_blocks(phi):
                cross += flat[:, columns] @ phi[:, columns].to(flat).T / delta
        cross = cross.view(size, count, -1)
        rotated = cross @ vectors.to(cross.device)
        values = values.to(cross.device)
        total = []
        # With Delta scaled by s: K/s, prior/s and cross/s.
        for s in self.scales.tolist():
            shrunk = rotated / (s * (s + values))
            total.append(prior / s - torch.bmm(shrunk, rotated.transpose(1, 2)))
        return torch.stack(total)


def _column_blocks(rows: Tensor, block: int = 1 << 16) -> list[slice]:
    """Cut the columns of a matrix into blocks, so that float64 copies stay small."""
    return [slice(start, start + block) for start in range(0, rows.shape[1], block)]
