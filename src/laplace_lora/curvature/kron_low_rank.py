"""The sketch of the whole GGN, and the Kronecker factors of what it leaves.

Kronecker factors by the rule ``fitted`` are linear in the block F_l that they stand for: L is its sum over inputs, and
R, times tr L, its sum over outputs (:mod:`laplace_lora.curvature.kronecker`). Those of the remainder F - W W^T >= 0 are
therefore the block's own, less those of W W^T, whose columns are Jacobians like any other:

    L = sum J J^T - sum_k W_k W_k^T,     R = (tr L)^-1 (sum J^T J - sum_k W_k^T W_k).

Products with a random basis are linear, too, so that sketches of wide factors, and their traces, are corrected in the
same way. So F ~ W W^T + blockdiag(L (x) R) comes from one pass, has the exact trace of every matrix's block, equals F
where its rank is at most m, and is ``kron`` without directions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature
from laplace_lora.curvature.kronecker import KroneckerCurvature
from laplace_lora.curvature.low_rank import ROUNDING, LowRankCurvature
from laplace_lora.errors import MemoryLimitError
from laplace_lora.jacobians import MatrixGradient, statistics_dtype
from laplace_lora.matrices import MatrixShape


class KroneckerLowRankCurvature(Curvature):
    """Both folds, fed by the same Jacobians: the bytes of :class:`LowRankCurvature` and :class:`KroneckerCurvature`.

    Attributes:
        joint: The sketch of all matrices together.
        kronecker: The factors of every matrix.
    """

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig) -> None:
        """Start empty; see :class:`Curvature`."""
        super().__init__(shapes, config)
        self.joint = LowRankCurvature(shapes, config)
        self.kronecker = KroneckerCurvature(shapes, config)

    def check_memory(self, rows_per_example: int, examples: int | None) -> None:
        """See :meth:`Curvature.check_memory`.

        Raises:
            MemoryLimitError: What is held at the end would exceed ``memory_limit_bytes``.
        """
        directions, factors = self.joint.needed_bytes(), self.kronecker.needed_bytes()
        needed = directions + factors
        if needed > self.config.memory_limit_bytes:
            raise MemoryLimitError(
                f"structure='kron_low_rank' needs {needed} bytes: {directions} for {self.joint.rank} directions of "
                f"{self.joint.weights} weights and {factors} for Kronecker factors; the limit is "
                f"{self.config.memory_limit_bytes}. Lower factor_rank ({self.joint.rank}), use structure='kron', or "
                "raise LaplaceConfig(memory_limit_bytes=...)."
            )

    def update(self, gradient: MatrixGradient, weights: Tensor) -> None:
        """See :meth:`Curvature.update`."""
        jacobian = gradient.jacobian()
        self.dtype = jacobian.dtype
        self.joint.add(gradient.index, gradient.row, jacobian, weights)
        self.kronecker.add_fitted(gradient.index, jacobian, weights)

    def end_batch(self) -> None:
        """See :meth:`Curvature.end_batch`."""
        self.joint.end_batch()
        self.kronecker.end_batch()

    def merge(self, other: Curvature) -> None:
        """See :meth:`Curvature.merge`."""
        assert isinstance(other, KroneckerLowRankCurvature)
        self.joint.merge(other.joint)
        self.kronecker.merge(other.kronecker)
        self.dtype = torch.promote_types(self.dtype, other.dtype)

    def finalise(self) -> dict[str, list[Tensor]]:
        """See :meth:`Curvature.finalise`.

        Returns:
            ``factor`` of :meth:`LowRankCurvature.finalise`, and what :meth:`KroneckerCurvature.finalise` returns for
            the remainder.
        """
        found = self.joint.finalise()
        precision = torch.finfo(statistics_dtype(self.dtype)).eps
        for index, (factor, remainder) in enumerate(zip(found["factor"], found.pop("diagonal"), strict=True)):
            self._leave_remainder(index, factor, float(remainder.sum()), precision)
        return found | self.kronecker.finalise()

    def _leave_remainder(self, index: int, factor: Tensor, trace: float, precision: float) -> None:
        """Take W W^T away from a matrix's factors."""
        left, right, shape = self.kronecker.left[index], self.kronecker.right[index], self.shapes[index]
        if trace <= ROUNDING * precision * left.trace():  # a quotient of two roundings might be anything
            for held in (*left.held, *right.held):
                held.zero_()
            return
        columns = factor.double().mT.reshape(-1, shape.out_features, shape.in_features)
        left.subtract(columns, precision)
        right.subtract(columns.mT, precision)
