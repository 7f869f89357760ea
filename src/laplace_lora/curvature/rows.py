"""The rows of the full GGN, kept: Phi = stack_n R_n^T J_n."""

from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature
from laplace_lora.errors import MemoryLimitError
from laplace_lora.jacobians import MatrixGradient
from laplace_lora.matrices import Groups, MatrixShape


class RowCurvature(Curvature):
    """All rows, M = N (K-1) of them, 4 M P bytes; with Gram matrices 8 M^2 bytes per prior group."""

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig) -> None:
        """Start empty; see :class:`Curvature`."""
        super().__init__(shapes, config)
        self.rows: list[list[Tensor]] = [[] for _ in self.shapes]
        self._count = 0

    def check_memory(self, rows_per_example: int, examples: int | None) -> None:
        """See :meth:`Curvature.check_memory`.

        Raises:
            MemoryLimitError: Rows and Gram matrices would exceed ``memory_limit_bytes``.
        """
        if examples is not None:
            self._refuse_above(rows_per_example * examples)

    def update(self, gradient: MatrixGradient, weights: Tensor) -> None:
        """See :meth:`Curvature.update`.

        Raises:
            MemoryLimitError: Rows and Gram matrices exceed ``memory_limit_bytes``.
        """
        jacobian = gradient.jacobian()
        self.dtype = jacobian.dtype
        if gradient.index == 0:
            self._count += len(weights)
            self._refuse_above(self._count)
        self.rows[gradient.index].append((jacobian * weights.to(jacobian)[:, None, None]).flatten(start_dim=1))

    def merge(self, other: Curvature) -> None:
        """See :meth:`Curvature.merge`."""
        assert isinstance(other, RowCurvature)
        self._refuse_above(self._count + other._count)
        for mine, its in zip(self.rows, other.rows, strict=True):
            mine.extend(its)
        self._count += other._count

    def finalise(self) -> dict[str, list[Tensor]]:
        """See :meth:`Curvature.finalise`: the ``rows``."""
        stacked = []
        for rows in self.rows:
            stacked.append(torch.cat(rows))
            rows.clear()
        return {"rows": stacked}

    def _refuse_above(self, count: int) -> None:
        parameters = sum(shape.size for shape in self.shapes)
        groups = len(Groups.of(self.shapes, self.config.prior_groups).names)
        needed = self.dtype.itemsize * count * parameters + 8 * count**2 * (groups + 3)
        if needed > self.config.memory_limit_bytes:
            raise MemoryLimitError(
                f"structure='exact' needs {needed} bytes for {count} rows of {parameters} weights, the limit is "
                f"{self.config.memory_limit_bytes}; fit fewer examples, use structure='kron', or raise "
                "LaplaceConfig(memory_limit_bytes=...)."
            )
