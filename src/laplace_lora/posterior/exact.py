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
from laplace_lora.posterior.row_products import Jacobians, Rows
from laplace_lora.posterior.spectrum import Grid
from laplace_lora.streaming import working_bytes

# Smaller eigenvalues of the Gram matrix, over the largest, are rounding.
_NO_CURVATURE = 1e-13
# Mean square of a bfloat16's rounding over that of the number: 2^-14 / 12 over 1.5 / log 2, where the logarithm of the
# mantissa is evenly spread.
_BFLOAT16 = 2.0**-14 / 12.0 / 2.164
# Relative errors of variances that are worth a word.
_COARSE = 0.01


class ExactPosterior(Posterior):
    """The GGN's posterior without any approximation of its structure.

    Memory: rows b M P bytes (b = 4, or 8 with float64 models, or 2 with bfloat16) unless they are in a file; Gram
    matrices, float64, 8 M^2 bytes for each prior group, and up to four more while K is decomposed; slabs of rows and
    Jacobians (:mod:`laplace_lora.streaming`). The rows are gone through once for the Gram matrices, once for every
    call of an accumulator's ``covariances``, and twice for any number of samples.
    """

    streams = True
    joint = True

    def __init__(self, shapes: Sequence[MatrixShape], rows: Sequence[Tensor], on_disk: bool = False) -> None:
        """Keep the rows.

        Args:
            shapes: One per matrix.
            rows: Per matrix Phi_l, (M, out * in).
            on_disk: Whether they are mapped from a file.
        """
        super().__init__(shapes)
        self.rows = Rows(rows, on_disk)
        self._grams: list[Tensor] | None = None
        self._decomposed: tuple[tuple[float, ...], Tensor, Tensor] | None = None

    @classmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "ExactPosterior":
        """See :meth:`Posterior.from_statistics`: ``rows`` or ``rows_on_disk`` holds Phi_l, (M, out * in)."""
        on_disk = "rows_on_disk" in statistics
        return cls(shapes, statistics["rows_on_disk" if on_disk else "rows"], on_disk)

    def accumulator(self, precision: Tensor, scales: Tensor | None = None) -> CovarianceAccumulator:
        """See :meth:`Posterior.accumulator`."""
        return _ExactAccumulator(self, precision, scales)

    def spectral_accumulator(self, grid: Grid) -> CovarianceAccumulator:
        """See :meth:`Posterior.spectral_accumulator`."""
        return _SpectralAccumulator(self, grid)

    def shared_bytes(self, limit: int) -> int:
        """See :meth:`Posterior.shared_bytes`: what is left beside Gram matrices and slabs, if the rows are in a file.

        Args:
            limit: Most bytes that the posterior may take.

        Returns:
            The bytes; 0 if all rows are in memory.
        """
        if not self.rows.on_disk:
            return 0
        return max(0, limit - working_bytes(len(self.rows), 1 + max(self.groups), max(s.size for s in self.shapes)))

    def storage_warning(self, precision: Tensor) -> str | None:
        """See :meth:`Posterior.storage_warning`: of rows in bfloat16.

        What their rounding adds to a row does not lie in their span, and keeps its prior variance: an error of 2.4e-6
        of the prior variance, which counts where the data have left little of it. Looked at is the row of which the
        least is left. (That the span turns is of first order in the rounding, and small; docs/exact.md has both.)

        Args:
            precision: Prior precision of each group.

        Returns:
            One sentence and the remedy, or None.
        """
        if self.rows.tensors[0].dtype != torch.bfloat16:
            return None
        narrowed = self.largest_narrowing(precision)
        if narrowed * _BFLOAT16 < _COARSE:
            return None
        return (
            f"rows are kept in bfloat16, and at this prior precision the data narrow variances up to {narrowed:.2g} "
            f"times, so that they err by up to about {100.0 * narrowed * _BFLOAT16:.2g} %; fit with "
            "rows_dtype='float32' (--rows-dtype float32), or take a larger prior precision."
        )

    def largest_narrowing(self, precision: Tensor) -> float:
        """Return the largest ratio of prior to posterior variance along a row: K_ii / [K (I + K)^-1]_ii.

        Args:
            precision: Prior precision of each group.

        Returns:
            The ratio, at least 1.
        """
        values, vectors = self.decompose(precision)
        squares = vectors.square()
        prior, posterior = squares @ values, squares @ (values / (1.0 + values))
        known = prior > _NO_CURVATURE * prior.max()
        return float((prior[known] / posterior[known]).max()) if bool(known.any()) else 1.0

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
        rows = {index: list(matrices.flatten(start_dim=2).unbind(1)) for index, matrices in jacobians.items()}
        ((own, cross),) = self.rows.products([rows], [1.0] * len(self.shapes))
        return self.gathered(own, cross, grid)

    def gathered(self, own: Tensor, cross: Tensor, grid: Grid) -> Tensor:
        """Split a batch's contributions by eigenvalue; see :meth:`gather`.

        Args:
            own: (B, M, M) J J^T.
            cross: (B, M, rows) J Phi^T.
            grid: From :meth:`grid`.

        Returns:
            (1, n, B, M, M) float64.
        """
        values, vectors = self.decompose(torch.ones(1, dtype=torch.float64))
        size, count = cross.shape[:2]
        table = grid.empty(1, (size, count, count), own.device)
        table[0, 0] += own
        rotated = (cross @ vectors).permute(2, 0, 1)
        known = values > _NO_CURVATURE * values.max()
        values = values[known]
        scaled = rotated[known] / values[:, None, None].sqrt()
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
        deltas = self.matrix_precisions(precision)
        draws = [
            standard_normal((count, shape.size), vectors, generator) * delta**-0.5
            for shape, delta in zip(self.shapes, deltas, strict=True)
        ]
        residual = standard_normal((count, len(values)), vectors, generator)
        for index, columns, slab in self.rows.slabs():
            residual += draws[index][:, columns] @ slab.mT
        residual = (residual @ vectors / (1.0 + values)) @ vectors.mT
        for index, columns, slab in self.rows.slabs():
            draws[index][:, columns] -= residual @ slab / deltas[index]
        return [
            draw.view(count, shape.out_features, shape.in_features)
            for draw, shape in zip(draws, self.shapes, strict=True)
        ]

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Posterior.tensors`."""
        return {f"{shape.name}.rows": rows for shape, rows in zip(self.shapes, self.rows.tensors, strict=True)}

    @classmethod
    def stored(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See :meth:`Posterior.stored`: as many rows everywhere as in the first tensor."""
        rows = next((len(tensor) for tensor in tensors.values() if tensor.dim()), 0)
        return {f"{shape.name}.rows": (rows, shape.size) for shape in shapes}

    @classmethod
    def from_tensors(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "ExactPosterior":
        """See :meth:`Posterior.from_tensors`."""
        return cls(shapes, [tensors[f"{shape.name}.rows"] for shape in shapes])

    @classmethod
    def from_mapped(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "ExactPosterior":
        """See :meth:`Posterior.from_mapped`."""
        return cls(shapes, [tensors[f"{shape.name}.rows"] for shape in shapes], on_disk=True)

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
            self._grams = self.rows.grams(self.groups)
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
            self._decomposed = None  # its memory is needed
            first, *others = self.grams()
            total = first if divisors == (1.0,) else first / divisors[0]
            for gram, divisor in zip(others, divisors[1:], strict=True):
                total.add_(gram, alpha=1.0 / divisor)
            values, vectors = torch.linalg.eigh(total)
            self._decomposed = (divisors, values.clamp(min=0.0), vectors)
        _, values, vectors = self._decomposed
        return (values / key[0] if len(key) == 1 else values), vectors


class _Jacobians(CovarianceAccumulator):
    """Keeps a batch's Jacobians where the rows are."""

    def __init__(self, posterior: ExactPosterior) -> None:
        self.posterior = posterior
        self.jacobians: dict[int, list[Tensor]] = {}

    def add(self, index: int, row: int, jacobian: Tensor) -> None:
        rows = self.jacobians.setdefault(index, [])
        assert row == len(rows), "rows come in order"
        rows.append(jacobian.flatten(start_dim=1).to(self.posterior.rows.device))

    @property
    def nbytes(self) -> int:
        """4 P bytes of Jacobians in float32, and 8 M of their products, for every logit of every example."""
        held = sum(row.nbytes for rows in self.jacobians.values() for row in rows)
        return held + 8 * len(self.posterior.rows) * sum(map(len, self.jacobians.get(0, [])))

    def covariance(self) -> Tensor:
        return self.covariances([self])[0]


class _ExactAccumulator(_Jacobians):
    """From J Delta^-1 J^T and J Delta^-1 Phi^T."""

    def __init__(self, posterior: ExactPosterior, precision: Tensor, scales: Tensor | None) -> None:
        super().__init__(posterior)
        self.precision = precision
        self.scales = torch.ones(1, dtype=torch.float64) if scales is None else scales

    @classmethod
    def covariances(cls, batches: Sequence[CovarianceAccumulator]) -> list[Tensor]:
        first, jacobians = _joined(batches)
        assert isinstance(first, _ExactAccumulator)
        values, vectors = first.posterior.decompose(first.precision)
        deltas = first.posterior.matrix_precisions(first.precision)
        found = []
        for own, cross in first.posterior.rows.products(jacobians, deltas):
            rotated = cross @ vectors
            total = []
            # With Delta scaled by s: K/s, own/s and cross/s.
            for s in first.scales.tolist():
                shrunk = rotated / (s * (s + values))
                total.append(own / s - torch.bmm(shrunk, rotated.mT))
            found.append(torch.stack(total))
        return found


class _SpectralAccumulator(_Jacobians):
    """From J J^T and J Phi^T, at every prior."""

    def __init__(self, posterior: ExactPosterior, grid: Grid) -> None:
        super().__init__(posterior)
        self.grid = grid

    @classmethod
    def covariances(cls, batches: Sequence[CovarianceAccumulator]) -> list[Tensor]:
        first, jacobians = _joined(batches)
        assert isinstance(first, _SpectralAccumulator)
        posterior = first.posterior
        products = posterior.rows.products(jacobians, [1.0] * len(posterior.shapes))
        return [posterior.gathered(own, cross, first.grid).flatten(end_dim=1) for own, cross in products]


def _joined(batches: Sequence[CovarianceAccumulator]) -> tuple[CovarianceAccumulator, list[Jacobians]]:
    """Return the first batch, which says how all were made, and the Jacobians of each."""
    return batches[0], [batch.jacobians for batch in batches if isinstance(batch, _Jacobians)]
