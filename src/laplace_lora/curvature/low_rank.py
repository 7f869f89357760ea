"""A sketch of the whole GGN, all weight matrices together: curvature between modules at the price of K-FAC's pass.

Of F = Phi^T Phi (P x P) only Y = F Omega, Omega in R^(P x m) random, orthonormal and always the same, and the diagonal
are accumulated. At the end Nystrom's approximation W W^T = Y (Omega^T Y)^-1 Y^T <= F, stabilised by a shift as in
:mod:`laplace_lora.curvature.sketch`, and what it misses of the diagonal, D = diag(F - W W^T) >= 0, make F ~ W W^T + D:
equal to F where its rank is at most m, and of the same diagonal everywhere. Sums throughout, so that batches and parts
of a data set may come in any order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature, add_sums, require_finite_sums
from laplace_lora.errors import LaplaceLoRAError, MemoryLimitError
from laplace_lora.jacobians import MatrixGradient, statistics_dtype
from laplace_lora.matrices import MatrixShape

#: What is below so many rounding units is nothing.
ROUNDING = 32.0
_SEED = 20_000_003


class LowRankCurvature(Curvature):
    """Y and the diagonal, 8 P (m + 1) bytes; Omega, 4 P m in float32, and at the end as much again for W.

    A row of a batch's Jacobians, 4 B P bytes, is held until all matrices have handed theirs on: all rows of a batch,
    where every option of an example has inputs of its own.
    """

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig) -> None:
        """Start empty; see :class:`Curvature`."""
        super().__init__(shapes, config)
        self.weights = sum(shape.size for shape in self.shapes)
        self.rank = min(config.rank, self.weights)
        self.products: list[Tensor | None] = [None] * len(self.shapes)
        self.squares: list[Tensor | None] = [None] * len(self.shapes)
        self._rows: dict[int, dict[int, Tensor]] = {}
        self._basis: list[Tensor] = []

    def check_memory(self, rows_per_example: int, examples: int | None) -> None:
        """See :meth:`Curvature.check_memory`.

        Raises:
            MemoryLimitError: What is held at the end would exceed ``memory_limit_bytes``.
        """
        needed = self.needed_bytes()
        if needed > self.config.memory_limit_bytes:
            raise MemoryLimitError(
                f"structure='low_rank' needs {needed} bytes for {self.rank} directions of {self.weights} weights; the "
                f"limit is {self.config.memory_limit_bytes}. Lower factor_rank ({self.rank}), use structure='kron', or "
                "raise LaplaceConfig(memory_limit_bytes=...)."
            )

    def needed_bytes(self) -> int:
        """Return the bytes held at the end: Y, Omega and W, the diagonal, and float64 copies of one matrix's rows."""
        largest = max(shape.size for shape in self.shapes)
        return 16 * self.weights * self.rank + 16 * self.weights + 24 * largest * self.rank

    def update(self, gradient: MatrixGradient, weights: Tensor) -> None:
        """See :meth:`Curvature.update`."""
        self.add(gradient.index, gradient.row, gradient.jacobian(), weights)

    def add(self, index: int, row: int, jacobian: Tensor, weights: Tensor) -> None:
        """Add one row of every example at one matrix: it is folded in when all matrices have handed theirs on.

        Args:
            index: Position of the matrix.
            row: Number of the row.
            jacobian: (B, out, in).
            weights: (B,) weights of the directions.
        """
        self.dtype = jacobian.dtype
        held = self._rows.setdefault(row, {})
        held[index] = (jacobian * weights.to(jacobian)[:, None, None]).flatten(start_dim=1)
        if len(held) == len(self.shapes):
            self._fold(self._rows.pop(row))

    def _fold(self, row: dict[int, Tensor]) -> None:
        basis = self._basis_like(row[0])
        images = sum(row[index] @ part for index, part in enumerate(basis))
        assert isinstance(images, Tensor)
        for index, jacobian in row.items():
            parts = (
                (self.products, (jacobian.mT @ images).double()),
                (self.squares, jacobian.double().square().sum(0)),
            )
            for sums, part in parts:
                held = sums[index]
                sums[index] = part if held is None else held.add_(part)

    def _basis_like(self, like: Tensor) -> list[Tensor]:
        """Return Omega, by matrix: Gaussian numbers, made orthonormal by the Cholesky factor of their Gram matrix."""
        if not self._basis or self._basis[0].dtype != like.dtype or self._basis[0].device != like.device:
            drawn = [self._gaussian(index) for index in range(len(self.shapes))]
            root = torch.linalg.cholesky(_gram(drawn, drawn))
            for index, part in enumerate(drawn):
                drawn[index] = torch.linalg.solve_triangular(root, part.double().mT, upper=False).mT.to(like)
            self._basis = drawn
        return self._basis

    def _gaussian(self, index: int) -> Tensor:
        # Of the matrix's position and size alone, so that every part of a data set has the same.
        generator = torch.Generator().manual_seed(_SEED + index)
        dtype = torch.float64 if self.weights * self.rank < 1 << 22 else torch.float32
        return torch.randn(self.shapes[index].size, self.rank, dtype=dtype, generator=generator)

    def end_batch(self) -> None:
        """See :meth:`Curvature.end_batch`: every row came from all matrices."""
        assert not self._rows

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
        basis = self._basis_like(products[0].to(dtype))
        self.products, self._basis = [None] * len(self.shapes), []
        factors = _nystrom(products, basis, torch.finfo(dtype).eps, dtype)
        remainders = [
            _beyond_rounding(square - factor.double().square().sum(dim=1), square, dtype)
            for square, factor in zip(squares, factors, strict=True)
        ]
        return {"factor": factors, "diagonal": remainders}


def _gram(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Return sum_l A_l^T B_l in float64."""
    total = left[0].new_zeros(left[0].shape[1], right[0].shape[1], dtype=torch.float64)
    for a, b in zip(left, right, strict=True):
        total += a.double().mT @ b.double()
    return total


def _nystrom(products: list[Tensor], basis: list[Tensor], precision: float, dtype: torch.dtype) -> list[Tensor]:
    """Return W with W W^T = Y (Omega^T Y)^-1 Y^T, matrix by matrix; both lists are used up, so that memory is freed.

    Args:
        products: Rows of Y, float64.
        basis: Rows of Omega.
        precision: Rounding unit of the products.
        dtype: Of the result.

    Returns:
        (out * in, k) rows, without directions that are rounding.

    Raises:
        LaplaceLoRAError: F is far from positive semi-definite.
    """
    norm = sum(float(part.square().sum()) for part in products) ** 0.5
    if norm == 0.0:
        return [part[:, :1].to(dtype) for part in products]
    core, own = _gram(basis, products) / norm, _gram(basis, basis)
    for shift in (precision * 10.0 ** torch.arange(-1.0, 8.0, dtype=torch.float64)).tolist():
        shifted = core + shift * own
        root, failed = torch.linalg.cholesky_ex(0.5 * (shifted + shifted.mT))
        if not int(failed):
            break
    else:
        raise LaplaceLoRAError(
            "the sketch of the curvature is not positive semi-definite, by more than rounding; please report it, and "
            "use structure='kron' meanwhile."
        )
    inner = torch.zeros_like(core)
    for index, part in enumerate(products):
        # Y / |Y| + shift Omega, times the inverse of the root: squares of tiny curvatures would underflow.
        half = part.div_(norm).add_(basis[index], alpha=shift)
        products[index] = torch.linalg.solve_triangular(root, half.mT, upper=False).mT
        inner += products[index].mT @ products[index]
    basis.clear()
    squares, vectors = torch.linalg.eigh(inner)
    values = norm * (squares - shift)
    kept = values > ROUNDING * precision * values.max()
    turn = vectors[:, kept] * (values[kept] / squares[kept]).sqrt()
    factors = []
    while products:
        factors.append((products.pop(0) @ turn).to(dtype))
    return factors


def _beyond_rounding(remainder: Tensor, square: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what remains of each square, 0 where that is rounding, whose positive half adds up over many weights."""
    return torch.where(remainder > ROUNDING * torch.finfo(dtype).eps * square, remainder, 0.0)
