"""A batch taken apart into rows without padding, for models that mix a batch's rows.

DeBERTa puts the embeddings of relative positions through its queries and keys once for the whole batch, mixtures of
experts sort all rows' tokens by expert: gradients there belong to no example. In a pass of one row without padding
everything belongs to that row.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from laplace_lora.adapters import Site
from laplace_lora.jacobians.gradients import MatrixGradient, SiteGradient
from laplace_lora.readouts import Draw, ModelRows
from laplace_lora.readouts.rows import Targets


def single_rows(rows: ModelRows) -> Iterator[ModelRows]:
    """Take a batch apart.

    Args:
        rows: The batch.

    Yields:
        Every row by itself, without its padding and without a place among others.
    """
    for row in range(rows.count):
        inputs = {key: value[row : row + 1] for key, value in rows.inputs.items()}
        positions = None if rows.positions is None else rows.positions[row : row + 1]
        if rows.mask is not None:
            real = rows.mask[row]
            inputs = {
                key: value[:, real] if value.dim() > 1 and value.shape[1] == len(real) else value
                for key, value in inputs.items()
            }
            if positions is not None:
                positions = (real.cumsum(0) - 1).clamp(min=0)[positions]
        targets = rows.targets
        if targets is not None:
            targets = Targets(targets.tokens[row : row + 1], targets.mask[row : row + 1])
        lengths = None if rows.lengths is None else rows.lengths[row : row + 1]
        yield ModelRows(inputs, 1, None, None, positions, targets, lengths)


def draw_of(draw: Draw | None, row: int) -> Draw | None:
    """Pick one row's random numbers.

    Args:
        draw: Those of the batch.
        row: The row.

    Returns:
        Its own.
    """
    return None if draw is None else lambda count: draw(count)[row : row + 1]


def nothing_at(site: Site, index: int, row: int, like: Tensor) -> SiteGradient:
    """Return the gradient of a matrix that had no part in a row's output, as an expert that saw none of its tokens.

    Args:
        site: The matrix.
        index: Its position.
        row: Number of the cotangent.
        like: Gives dtype and device.
    """
    inputs = like.new_zeros(1, 1, site.in_features - (site.bias is not None))
    gradient = like.new_zeros(1, 1, site.out_features)
    mask = torch.zeros(1, 1, dtype=torch.bool, device=like.device)
    return SiteGradient(index, row, inputs, gradient, mask, site.bias is not None)


@dataclasses.dataclass(frozen=True)
class JoinedGradient(MatrixGradient):
    """Gradients of rows that went through the model one by one.

    Attributes:
        index: Position of the matrix.
        row: Number of the cotangent.
        parts: One gradient per row.
    """

    index: int
    row: int
    parts: Sequence[MatrixGradient]

    @property
    def token_mask(self) -> Tensor | None:
        """See :attr:`MatrixGradient.token_mask`."""
        return _padded([_mask(part) for part in self.parts])

    def tokens(self) -> tuple[Tensor, Tensor]:
        """See :meth:`MatrixGradient.tokens`."""
        inputs, gradients = zip(*(part.tokens() for part in self.parts), strict=True)
        return _padded(inputs), _padded(gradients)

    def jacobian(self) -> Tensor:
        """See :meth:`MatrixGradient.jacobian`."""
        return torch.cat([part.jacobian() for part in self.parts])

    def select(self, positions: Tensor) -> "JoinedGradient":
        """See :meth:`MatrixGradient.select`."""
        return dataclasses.replace(self, parts=[self.parts[position] for position in positions.tolist()])


def _mask(part: MatrixGradient) -> Tensor:
    mask = part.token_mask
    if mask is not None:
        return mask
    inputs, _ = part.tokens()
    return torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Put (1, T, ...) tensors of different T under each other."""
    return torch.nn.utils.rnn.pad_sequence([part[0] for part in parts], batch_first=True)
