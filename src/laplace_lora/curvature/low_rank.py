"""A sketch of the whole GGN, all weight matrices together: curvature between modules at the price of K-FAC's pass.

Of F = Phi^T Phi (P x P) only Y = F Omega, Omega in R^(P x m) random, orthonormal and always the same, and the diagonal
are accumulated. At the end Nystrom's approximation W W^T <= F (:func:`laplace_lora.curvature.sketch.nystrom`) and what
it misses of the diagonal, D = diag(F - W W^T) >= 0, make F ~ W W^T + D: equal to F where its rank is at most m, and of
the same diagonal everywhere. Sums throughout, so that batches and parts of a data set may come in any order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature, add_sums, require_finite_sums
from laplace_lora.curvature.sketch import nystrom, random_basis
from laplace_lora.errors import MemoryLimitError
from laplace_lora.jacobians import MatrixGradient, statistics_dtype
from laplace_lora.matrices import MatrixShape

# What is below so many rounding units is nothing.
_ROUNDING = 32.0


class LowRankCurvature(Curvature):
    """Y and the diagonal, 8 P (m + 1) bytes; Omega, 4 P m in float32; and a row of a batch's Jacobians, 4 B P."""

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig) -> None:
        """Start empty; see :class:`Curvature`."""
        super().__init__(shapes, config)
        self.weights = sum(shape.size for shape in self.shapes)
        self.rank = min(config.sketch_rank, self.weights)
        self.products: list[Tensor | None] = [None] * len(self.shapes)
        self.squares: list[Tensor | None] = [None] * len(self.shapes)
        self._row: dict[int, Tensor] = {}

    def check_memory(self, rows_per_example: int, examples: int | None) -> None:
        """See :meth:`Curvature.check_memory`.

        Raises:
            MemoryLimitError: Sums and Omega would exceed ``memory_limit_bytes``.
        """
        needed = self.weights * (8 * (self.rank + 1) + 4 * self.rank)
        if needed > self.config.memory_limit_bytes:
            raise MemoryLimitError(
                f"structure='low_rank' needs {needed} bytes for {self.rank} directions of {self.weights} weights; the "
                f"limit is {self.config.memory_limit_bytes}. Lower factor_rank ({self.rank}), use structure='kron', or "
                "raise LaplaceConfig(memory_limit_bytes=...)."
            )

    def update(self, gradient: MatrixGradient, weights: Tensor) -> None:
        """See :meth:`Curvature.update`: a row is folded in when all matrices have handed theirs on."""
        jacobian = gradient.jacobian()
        self.dtype = jacobian.dtype
        self._row[gradient.index] = (jacobian * weights.to(jacobian)[:, None, None]).flatten(start_dim=1)
        if len(self._row) == len(self.shapes):
            self._fold()

    def _fold(self) -> None:
        basis = self._basis(self._row[0])
        images = sum(self._row[index] @ part for index, part in enumerate(basis))
        assert isinstance(images, Tensor)
        for index, row in self._row.items():
            add_sums(self.products, self._at(index, (row.mT @ images).double()))
            add_sums(self.squares, self._at(index, row.double().square().sum(dim=0)))
        self._row.clear()

    def _at(self, index: int, value: Tensor) -> list[Tensor | None]:
        return [value if position == index else None for position in range(len(self.shapes))]

    def _basis(self, like: Tensor) -> tuple[Tensor, ...]:
        basis = random_basis(self.weights, self.rank, like.dtype, str(like.device))
        return basis.split([shape.size for shape in self.shapes])

    def end_batch(self) -> None:
        """See :meth:`Curvature.end_batch`: every row came from all matrices."""
        assert not self._row

    def merge(self, other: Curvature) -> None:
        """See :meth:`Curvature.merge`."""
        assert isinstance(other, LowRankCurvature)
        assert other.rank == self.rank
        add_sums(self.products, other.products)
        add_sums(self.squares, other.squares)
        self.dtype = torch.promote_types(self.dtype, other.dtype)

    def finalise(self) -> dict[str, list[Tensor]]:
        """See :meth:`Curvature.finalise`.

        Returns:
            ``factor``, per matrix (out * in, k) rows of W in the Jacobians' dtype, k <= m, and ``diagonal``, per matrix
            the (out * in,) float64 remainder D.
        """
        products, squares = ([part for part in parts if part is not None] for parts in (self.products, self.squares))
        for shape, *sums in zip(self.shapes, products, squares, strict=True):
            require_finite_sums(sums, shape)
        dtype = statistics_dtype(self.dtype)
        omega = torch.cat(self._basis(products[0].to(dtype))).double()
        values, vectors = nystrom(torch.cat(products), omega, torch.finfo(dtype).eps)
        # Directions that the data do not have: many small eigenvalues, all of them rounding.
        kept = max(1, int((values > _ROUNDING * torch.finfo(dtype).eps * values[0]).sum()))
        factors = (vectors * values.sqrt())[:, :kept].to(dtype).split([shape.size for shape in self.shapes])
        remainders = [
            _beyond_rounding(square - factor.double().square().sum(dim=1), square, dtype)
            for square, factor in zip(squares, factors, strict=True)
        ]
        return {"factor": [factor.contiguous() for factor in factors], "diagonal": remainders}


def _beyond_rounding(remainder: Tensor, square: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what remains of each square, 0 where that is rounding, whose positive half adds up over many weights."""
    return torch.where(remainder > _ROUNDING * torch.finfo(dtype).eps * square, remainder, 0.0)
