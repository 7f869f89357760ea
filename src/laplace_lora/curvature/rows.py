"""The rows of the full GGN, kept: Phi = stack_n R_n^T J_n."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature, require_finite_sums
from laplace_lora.curvature.row_stores import RowsInMemory, RowsOnDisk
from laplace_lora.errors import MemoryLimitError, OutputError
from laplace_lora.jacobians import MatrixGradient
from laplace_lora.matrices import Groups, MatrixShape
from laplace_lora.streaming import working_bytes


class RowCurvature(Curvature):
    """All rows, M = N (K-1) of them, of P weights: b M P bytes, b = 4, or 8 with float64 models, or 2 with bfloat16.

    They are in memory, beside 8 M^2 bytes per prior group of Gram matrices; or, with ``rows_folder``, in a file, and
    in memory is what :func:`laplace_lora.streaming.working_bytes` counts, whatever P. Refused is what would exceed
    ``memory_limit_bytes``, or the disk.
    """

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig) -> None:
        """Start empty; see :class:`Curvature`."""
        super().__init__(shapes, config)
        sizes = [shape.size for shape in self.shapes]
        folder = config.rows_folder
        self._store = RowsInMemory(len(sizes)) if folder is None else RowsOnDisk(folder, sizes)
        self._count = 0

    @property
    def row_dtype(self) -> torch.dtype:
        """In which rows are kept: the Jacobians' own if nothing else is asked for."""
        return self.dtype if self.config.rows_dtype == "auto" else getattr(torch, self.config.rows_dtype)

    def check_memory(self, rows_per_example: int, examples: int | None) -> None:
        """See :meth:`Curvature.check_memory`.

        Raises:
            MemoryLimitError: Rows and Gram matrices would exceed ``memory_limit_bytes``.
            OutputError: The rows would not fit on the disk.
        """
        if examples is None:
            return
        self._refuse_above(rows_per_example * examples)
        if isinstance(self._store, RowsOnDisk):
            needed = self._bytes_of_rows(rows_per_example * examples)
            free = self._store.free_bytes()
            if needed > free:
                raise OutputError(
                    f"structure='exact' writes {needed} bytes of rows, and {self._store.folder} has room for {free}; "
                    "give rows_folder another place, rows_dtype='bfloat16', or fewer examples."
                )

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
        rows = (jacobian * weights.to(jacobian)[:, None, None]).flatten(start_dim=1).to(self.row_dtype)
        require_finite_sums([rows], self.shapes[gradient.index])
        self._store.append(gradient.index, rows)

    def merge(self, other: Curvature) -> None:
        """See :meth:`Curvature.merge`."""
        assert isinstance(other, RowCurvature)
        self._refuse_above(self._count + other._count)
        self._store.extend(other._store)
        self._count += other._count
        self.dtype = torch.promote_types(self.dtype, other.dtype)

    def finalise(self) -> dict[str, list[Tensor]]:
        """See :meth:`Curvature.finalise`: the ``rows``, or ``rows_on_disk``."""
        name = "rows_on_disk" if isinstance(self._store, RowsOnDisk) else "rows"
        return {name: self._store.finished()}

    def require_finite(self, statistics: Mapping[str, Sequence[Tensor]]) -> None:
        """See :meth:`Curvature.require_finite`: rows were looked at as they came."""

    def discard(self) -> None:
        """See :meth:`Curvature.discard`."""
        self._store.discard()

    def _bytes_of_rows(self, count: int) -> int:
        return self.row_dtype.itemsize * count * sum(shape.size for shape in self.shapes)

    def _refuse_above(self, count: int) -> None:
        parameters = sum(shape.size for shape in self.shapes)
        groups = len(Groups.of(self.shapes, self.config.prior_groups).names)
        on_disk = isinstance(self._store, RowsOnDisk)
        if on_disk:
            needed = working_bytes(count, groups, max(shape.size for shape in self.shapes))
        else:
            needed = self._bytes_of_rows(count) + 8 * count**2 * (groups + 3)
        if needed > self.config.memory_limit_bytes:
            remedy = "" if on_disk else "keep the rows on disk with LaplaceConfig(rows_folder=...), "
            raise MemoryLimitError(
                f"structure='exact' needs {needed} bytes for {count} rows of {parameters} weights, the limit is "
                f"{self.config.memory_limit_bytes}; {remedy}fit fewer examples, use structure='kron', or raise "
                "LaplaceConfig(memory_limit_bytes=...)."
            )
