"""Rows that need not fit in memory: files as tensors, and the memory that it takes to work through one.

The dual form of the GGN's posterior (:mod:`laplace_lora.posterior.exact`) meets its M rows of P weights only in
products over the weights, so that it can go through them by slabs: all rows of some columns, in float64. A file that is
mapped into the address space is read as it is met; its pages are the system's to keep or to drop, and no memory of the
process.
"""

import mmap
import warnings
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import torch
from torch import Tensor

#: Bytes of a slab of rows in float64, and of the Jacobians that meet it.
SLAB_BYTES = 1 << 27


def column_slabs(rows: int, columns: int) -> Iterator[slice]:
    """Cut the columns of a matrix so that a slab in float64 takes at most ``SLAB_BYTES`` (but one column at least).

    Args:
        rows: Number of rows.
        columns: Number of columns.

    Yields:
        Ranges of columns, in order.
    """
    width = max(1, SLAB_BYTES // (8 * max(1, rows)))
    for start in range(0, columns, width):
        yield slice(start, min(start + width, columns))


def working_bytes(rows: int, groups: int, widest: int) -> int:
    """Count the memory that streaming takes, whatever the number of weights.

    8 M^2 (G + 4): Gram matrices of G prior groups, their sum, its eigenvectors and what finding these takes. Beside
    them a slab of rows and one of Jacobians.

    Args:
        rows: M.
        groups: G.
        widest: Weights of the largest matrix.

    Returns:
        Bytes.
    """
    return 8 * rows**2 * (groups + 4) + 2 * min(SLAB_BYTES, 8 * rows * widest)


def mapped_bytes(file: BinaryIO) -> Tensor:
    """Map a file into memory, to be read only.

    Args:
        file: An open file that is not empty; it may be closed afterwards.

    Returns:
        All of its bytes, uint8. Writing to them ends the process.
    """
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        # torch has no tensors that are read only, and says so.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mapping, dtype=torch.uint8)


def section(data: Tensor, start: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Read a part of a mapped file as a tensor.

    Args:
        data: From :func:`mapped_bytes`.
        start: Position of its first byte.
        shape: Of the tensor, row-major.
        dtype: Of the tensor.

    Returns:
        A view.
    """
    count = torch.Size(shape).numel() * dtype.itemsize
    return data[start : start + count].view(dtype).view(tuple(shape))
