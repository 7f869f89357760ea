"""Sums of outer products, from which the Kronecker factors of a curvature block come: kept whole, or as a sketch."""

import abc

import torch
from torch import Tensor

#: Rounding units of the difference of two sums, over the larger of them.
ROUNDING = 8.0


class FactorSum(abc.ABC):
    """F = sum_b w_b M_b M_b^T over the examples b of a data set, (d, d); a fold like the curvature it is part of.

    Attributes:
        width: d.
        rounding: Eigenvalues up to this may be nothing but the rounding of a sum that was taken away.
    """

    def __init__(self, width: int) -> None:
        """Start empty.

        Args:
            width: d.
        """
        self.width = width
        self.rounding = 0.0

    @abc.abstractmethod
    def add(self, stack: Tensor, weights: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            stack: (B, d, n) matrices M_b.
            weights: (B,) w_b; 1 if not given.
        """

    @abc.abstractmethod
    def merge(self, other: "FactorSum") -> None:
        """Add another sum.

        Args:
            other: Of the same class and width; left as it is.
        """

    def subtract(self, stack: Tensor, precision: float) -> None:
        """Take sum_b M_b M_b^T <= F away, where the sum is one that knows what is left.

        Args:
            stack: (B, d, n) matrices M_b, float64.
            precision: Rounding unit to which F and the matrices are known.

        Raises:
            NotImplementedError: It is not linear in what was added.
        """
        raise NotImplementedError

    @property
    @abc.abstractmethod
    def held(self) -> list[Tensor]:
        """The sums in memory; none while empty."""

    @abc.abstractmethod
    def trace(self) -> float:
        """Return tr F, up to rounding."""

    @abc.abstractmethod
    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """End the fold: F = V diag(values) V^T + tail (I - V V^T), exactly or as well as the sum knows it.

        Returns:
            Eigenvalues (m,), not below 0, and orthonormal eigenvectors (d, m), and the tail's eigenvalue (): all
            float64. With m = d there is no tail.
        """


class WholeFactor(FactorSum):
    """F itself: 8 d^2 bytes."""

    def __init__(self, width: int) -> None:
        """Start empty; see :class:`FactorSum`."""
        super().__init__(width)
        self.matrix: Tensor | None = None

    def add(self, stack: Tensor, weights: Tensor | None = None) -> None:
        """See :meth:`FactorSum.add`."""
        if self.width <= stack.shape[2]:
            # Few rows of long vectors: one small product per example, no larger together than the stack.
            each = torch.bmm(stack, stack.mT).flatten(start_dim=1)
            product = each.sum(dim=0) if weights is None else weights.to(each) @ each
            self._take(product.view(self.width, self.width))
            return
        rows = as_rows(stack)
        weighted = rows if weights is None else rows * weights.to(rows).repeat_interleave(stack.shape[2])[:, None]
        self._take(weighted.mT @ rows)

    def merge(self, other: FactorSum) -> None:
        """See :meth:`FactorSum.merge`."""
        assert isinstance(other, WholeFactor)
        if other.matrix is not None:
            self._take(other.matrix)

    def subtract(self, stack: Tensor, precision: float) -> None:
        """See :meth:`FactorSum.subtract`."""
        rows = as_rows(stack)
        product = rows.mT @ rows
        self.rounding += ROUNDING * precision * float(product.norm())
        self._take(-product)

    @property
    def held(self) -> list[Tensor]:
        """See :attr:`FactorSum.held`."""
        return [] if self.matrix is None else [self.matrix]

    def trace(self) -> float:
        """See :meth:`FactorSum.trace`."""
        return 0.0 if self.matrix is None else float(self.matrix.trace())

    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`FactorSum.spectrum`."""
        assert self.matrix is not None
        values, vectors = torch.linalg.eigh(self.matrix)
        # Rounding can leave eigenvalues of a positive semi-definite matrix slightly below 0.
        return torch.where(values > self.rounding, values, 0.0), vectors, values.new_zeros(())

    def _take(self, product: Tensor) -> None:
        self.matrix = added(self.matrix, product)


class LowRankFactor(FactorSum):
    """A sum that keeps a few directions, and the exact trace beside them.

    Attributes:
        rank: Number of directions, below d.
    """

    def __init__(self, width: int, rank: int) -> None:
        """Start empty.

        Args:
            width: d.
            rank: Number of directions, below d.
        """
        super().__init__(width)
        self.rank = rank
        self._trace: Tensor | None = None

    def trace(self) -> float:
        """See :meth:`FactorSum.trace`."""
        return 0.0 if self._trace is None else float(self._trace)


def added(total: Tensor | None, part: Tensor) -> Tensor:
    """Add to a float64 sum, in place.

    Args:
        total: The sum so far, or None.
        part: What to add, of any dtype; left as it is.

    Returns:
        The sum.
    """
    return part.to(torch.float64, copy=True) if total is None else total.add_(part)


def as_rows(stack: Tensor) -> Tensor:
    """Return the columns of every matrix of a stack as rows, example after example.

    Args:
        stack: (B, d, n).

    Returns:
        (B n, d); a view where each matrix's columns lie one after the other in memory.
    """
    return stack.mT.reshape(-1, stack.shape[1])
