"""The paper's low-rank Kronecker factors: a running singular value decomposition, cut to a few directions.

Yang et al. (ICLR 2024, appendix on low-rank K-FAC) keep B (d x k), k = 10, with B B^T for the wide factor, and replace
it after every batch by the leading k left singular vectors, times singular values, of [B, batch]. What is cut is lost:
the factor is understated, variances come out too large, and batch size and order change it (rounding aside, only if the
rank of the sum is above k); and every batch takes a decomposition of its own.
:mod:`laplace_lora.curvature.sketch` has neither fault.
"""

import torch
from torch import Tensor

from laplace_lora.curvature.factors import FactorSum, LowRankFactor, added, as_rows


class TruncatedFactor(LowRankFactor):
    """B (d, k) with B B^T near F: 8 d k bytes, and the exact trace."""

    def __init__(self, width: int, rank: int) -> None:
        """Start empty; see :class:`LowRankFactor`."""
        super().__init__(width, rank)
        self.root: Tensor | None = None

    def add(self, stack: Tensor, weights: Tensor | None = None) -> None:
        """See :meth:`FactorSum.add`."""
        rows = as_rows(stack).double()
        if weights is not None:
            rows = rows * weights.double().sqrt().repeat_interleave(stack.shape[2])[:, None]
        self._trace = added(self._trace, rows.square().sum())
        self._take(rows.mT)

    def merge(self, other: FactorSum) -> None:
        """See :meth:`FactorSum.merge`: as if the other's directions came as a batch."""
        assert isinstance(other, TruncatedFactor) and other.rank == self.rank
        if other.root is None or other._trace is None:
            return
        self._trace = added(self._trace, other._trace)
        self._take(other.root)

    @property
    def held(self) -> list[Tensor]:
        """See :attr:`FactorSum.held`."""
        return [tensor for tensor in (self.root, self._trace) if tensor is not None]

    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`FactorSum.spectrum`: no tail."""
        assert self.root is not None
        vectors, singular, _ = torch.linalg.svd(self.root, full_matrices=False)
        return singular.square(), vectors, singular.new_zeros(())

    def _take(self, columns: Tensor) -> None:
        together = columns if self.root is None else torch.cat([self.root, columns], dim=1)
        missing = self.rank - together.shape[1]
        if missing > 0:
            together = torch.nn.functional.pad(together, (0, missing))
        if not bool(torch.isfinite(together).all()):
            # No decomposition exists; the end of the fold says what overflowed.
            self.root = together[:, : self.rank] * torch.nan
            return
        vectors, singular, _ = torch.linalg.svd(together, full_matrices=False)
        self.root = vectors[:, : self.rank] * singular[: self.rank]
