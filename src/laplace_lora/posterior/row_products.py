"""The rows Phi of the full GGN, and all that is ever computed with them: products over the weights, slab by slab."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora import streaming
from laplace_lora.streaming import column_slabs

#: Jacobians of a batch: by matrix, m tensors (B, out * in).
Jacobians = Mapping[int, Sequence[Tensor]]
# Rows of a Gram matrix that are computed up to the diagonal together.
_PANEL = 512


class Rows:
    """Phi, matrix by matrix.

    Attributes:
        tensors: Per matrix Phi_l, (M, out * in), in memory or mapped from a file.
        on_disk: Whether they are in a file, so that going through them costs more than the arithmetic.
        passes: How many times all of them were gone through.
    """

    def __init__(self, tensors: Sequence[Tensor], on_disk: bool = False) -> None:
        """Keep the rows.

        Args:
            tensors: Per matrix Phi_l.
            on_disk: Whether they are in a file.
        """
        self.tensors = list(tensors)
        self.on_disk = on_disk
        self.passes = 0

    def __len__(self) -> int:
        """Return M."""
        return len(self.tensors[0])

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.tensors[0].device

    def slabs(self) -> Iterator[tuple[int, slice, Tensor]]:
        """Go through all rows once.

        Yields:
            The matrix, some of its columns, and these of all rows: (M, c) float64, overwritten by the next.
        """
        self.passes += 1
        buffer = torch.empty(0, dtype=torch.float64, device=self.device)
        for index, rows in enumerate(self.tensors):
            for columns in column_slabs(*rows.shape):
                part = rows[:, columns]
                if buffer.numel() < part.numel():
                    buffer = torch.empty(0, dtype=torch.float64, device=self.device)  # never two of them
                    buffer = torch.empty(part.numel(), dtype=torch.float64, device=self.device)
                yield index, columns, buffer[: part.numel()].view(part.shape).copy_(part)

    def grams(self, groups: Sequence[int]) -> list[Tensor]:
        """Return Phi_g Phi_g^T for every prior group, from one pass over the rows.

        Args:
            groups: For every matrix the position of its group.

        Returns:
            (M, M) float64 matrices.
        """
        size = len(self)
        sums = [torch.zeros(size, size, dtype=torch.float64, device=self.device) for _ in range(1 + max(groups))]
        panels = [slice(start, min(start + _PANEL, size)) for start in range(0, size, _PANEL)]
        for index, _, slab in self.slabs():
            for panel in panels:
                sums[groups[index]][panel, : panel.stop].addmm_(slab[panel], slab[: panel.stop].mT)
        for gram in sums:
            for panel in panels:
                gram[: panel.start, panel] = gram[panel, : panel.start].mT
        return sums

    def products(self, batches: Sequence[Jacobians], deltas: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Multiply batches of Jacobians with themselves and with the rows, in one pass over the rows.

        Args:
            batches: By batch.
            deltas: Prior precision of every matrix.

        Returns:
            By batch J Delta^-1 J^T, (B, m, m), and J Delta^-1 Phi^T, (B, m, M), float64.
        """
        shapes = [(len(batch[0]), len(batch[0][0])) for batch in batches]
        ends = list(itertools.accumulate(count * size for count, size in shapes))
        starts = [0, *ends]
        own = [torch.zeros(n, m, m, dtype=torch.float64, device=self.device) for m, n in shapes]
        cross = torch.zeros(ends[-1], len(self), dtype=torch.float64, device=self.device)
        for index, columns, slab in self.slabs():
            delta = deltas[index]
            for some in _chunks(starts, columns.stop - columns.start):
                # Products are float64 although rows are not: the covariance's two terms cancel by the ratio of prior
                # to posterior variance, 1e4 and more.
                flat = torch.cat([row[:, columns] for batch in batches[some] for row in batch[index]]).double()
                first = starts[some.start]
                cross[first : starts[some.stop]].addmm_(flat, slab.mT, alpha=1.0 / delta)
                for position in range(some.start, some.stop):
                    part = flat[starts[position] - first : starts[position + 1] - first].view(*shapes[position], -1)
                    part = part.transpose(0, 1)
                    own[position].baddbmm_(part, part.mT, alpha=1.0 / delta)
        found = []
        for position, shape in enumerate(shapes):
            mine = cross[starts[position] : starts[position + 1]].view(*shape, -1)
            found.append((own[position], mine.transpose(0, 1)))
        return found


def _chunks(starts: Sequence[int], columns: int) -> Iterator[slice]:
    """Put consecutive batches together as far as their float64 columns fit a slab."""
    most = streaming.SLAB_BYTES // (8 * columns)
    first = 0
    for position in range(1, len(starts)):
        if position == len(starts) - 1 or starts[position + 1] - starts[first] > most:
            yield slice(first, position)
            first = position
