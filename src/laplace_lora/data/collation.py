"""Tokenised examples of different lengths, put together into one batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

#: What labels of tokens hold where nothing counts.
IGNORED = -100


def collate(rows: Sequence[Mapping[str, Tensor]], padding: int, side: str) -> dict[str, Tensor]:
    """Pad and join batches of one example each.

    Args:
        rows: Tensors of shape (1, ...): tokens last; before them, of examples with choices, the choices.
        padding: The padding token.
        side: ``left`` or ``right``, of tokens. Choices are padded at the end.

    Returns:
        (B, ...) tensors.
    """
    return {key: _joined([row[key] for row in rows], _filler(key, padding), side) for key in rows[0]}


def _filler(key: str, padding: int) -> int:
    return {"input_ids": padding, "labels": IGNORED}.get(key, 0)


def _joined(tensors: Sequence[Tensor], fill: int, side: str) -> Tensor:
    if tensors[0].dim() == 1:  # labels of whole examples
        return torch.cat(list(tensors))
    widest = [max(tensor.shape[axis] for tensor in tensors) for axis in range(1, tensors[0].dim())]
    padded = []
    for tensor in tensors:
        missing = [size - tensor.shape[axis] for axis, size in enumerate(widest, start=1)]
        # The last axis comes first in torch's list; it alone may be padded at its beginning.
        amounts = [missing[-1], 0] if side == "left" else [0, missing[-1]]
        for more in reversed(missing[:-1]):
            amounts += [0, more]
        padded.append(torch.nn.functional.pad(tensor, amounts, value=fill))
    return torch.cat(padded)
