"""Where the rows of the full GGN are kept while they are collected, and afterwards: in memory, or in a file."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from laplace_lora.errors import OutputError
from laplace_lora.streaming import mapped_bytes, section

# Longest file that file systems in use take (ext4: 16 TiB). Of its length only what is written takes space.
_LONGEST = 1 << 43
# Bytes handed to the system at once.
_PIECE = 1 << 26


class RowStore(Protocol):
    """Takes rows matrix by matrix, the same number of each in the end."""

    def append(self, index: int, rows: Tensor) -> None:
        """Add (n, out * in) rows of one matrix."""

    def extend(self, other: "RowStore") -> None:
        """Add the rows of another store of the same kind, which stays as it is."""

    def finished(self) -> list[Tensor]:
        """Return all (M, out * in) rows of every matrix; nothing is added afterwards."""

    def discard(self) -> None:
        """Let go of all rows."""


class RowsInMemory:
    """Rows as tensors, where the Jacobians are."""

    def __init__(self, matrices: int) -> None:
        """Start empty.

        Args:
            matrices: Number of weight matrices.
        """
        self._rows: list[list[Tensor]] = [[] for _ in range(matrices)]

    def append(self, index: int, rows: Tensor) -> None:
        """See :class:`RowStore`."""
        self._rows[index].append(rows)

    def extend(self, other: RowStore) -> None:
        """See :class:`RowStore`."""
        assert isinstance(other, RowsInMemory)
        for mine, its in zip(self._rows, other._rows, strict=True):
            mine.extend(its)

    def finished(self) -> list[Tensor]:
        """See :class:`RowStore`."""
        stacked = []
        for rows in self._rows:
            stacked.append(torch.cat(rows))
            rows.clear()
        return stacked

    def discard(self) -> None:
        """See :class:`RowStore`."""
        self._rows.clear()


class RowsOnDisk:
    """Rows in one unnamed temporary file, written as they come and mapped into memory in the end.

    The file has no name in its folder (on POSIX), so that its space is free again as soon as the last of its rows is
    let go of, or the process ends, however it ends. In it every matrix has a region of its own, as long as the disk
    could fill; of a region's length only what is written takes space. So the number of rows need not be known before,
    and all rows of a matrix lie next to each other, as they are read later.
    """

    def __init__(self, folder: str, sizes: Sequence[int]) -> None:
        """Open the file.

        Args:
            folder: Where; it must exist.
            sizes: Weights of every matrix.

        Raises:
            OutputError: Nothing can be written there.
        """
        self.folder = folder
        self._sizes = list(sizes)
        self._counts = [0] * len(self._sizes)
        self._dtype: torch.dtype | None = None
        self._capacity = 0
        try:
            self._file = tempfile.TemporaryFile(dir=folder, prefix="laplace-lora-rows-", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._refusal(error.strerror or str(error)) from error

    def free_bytes(self) -> int:
        """Return what the disk has room for."""
        return shutil.disk_usage(self.folder).free

    def append(self, index: int, rows: Tensor) -> None:
        """See :class:`RowStore`.

        Raises:
            OutputError: The disk is full, or fails.
        """
        if self._dtype is None:
            self._dtype = rows.dtype
            self._capacity = min(_LONGEST, self.free_bytes()) // (rows.dtype.itemsize * sum(self._sizes)) + 1
        assert rows.dtype == self._dtype
        count = self._counts[index]
        if count + len(rows) > self._capacity:
            raise self._refusal("no space left there")
        try:
            self._write(self._start(index) + count * self._sizes[index] * self._dtype.itemsize, rows)
        except OSError as error:
            raise self._refusal(error.strerror or str(error)) from error
        self._counts[index] = count + len(rows)

    def extend(self, other: RowStore) -> None:
        """See :class:`RowStore`."""
        assert isinstance(other, RowsOnDisk)
        for index, rows in enumerate(other._mapped()):
            for part in rows.split(max(1, _PIECE // (rows.shape[1] * rows.element_size()))):
                self.append(index, part)

    def finished(self) -> list[Tensor]:
        """See :class:`RowStore`: mapped, on the host."""
        mapped = self._mapped()
        self._file.close()  # the mapping holds the file
        return mapped

    def discard(self) -> None:
        """See :class:`RowStore`: the space is free again."""
        self._file.close()

    def _mapped(self) -> list[Tensor]:
        if self._dtype is None:
            return []
        data, dtype = mapped_bytes(self._file), self._dtype
        shapes = zip(self._counts, self._sizes, strict=True)
        return [section(data, self._start(index), shape, dtype) for index, shape in enumerate(shapes)]

    def _start(self, index: int) -> int:
        assert self._dtype is not None
        return self._capacity * self._dtype.itemsize * sum(self._sizes[:index])

    def _write(self, position: int, rows: Tensor) -> None:
        self._file.seek(position)
        for piece in _pieces(rows):
            while piece:
                piece = piece[self._file.write(piece) :]

    def _refusal(self, reason: str) -> OutputError:
        return OutputError(
            f"the rows of structure='exact' cannot be written in {os.path.abspath(self.folder)} ({reason}); nothing "
            "was left there. Give rows_folder another place, rows_dtype='bfloat16', or fewer examples."
        )


def _pieces(rows: Tensor) -> Iterator[memoryview]:
    data = rows.detach().cpu().contiguous().view(torch.uint8).numpy().reshape(-1)
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE].data
