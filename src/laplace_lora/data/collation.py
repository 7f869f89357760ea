"""Tokenised examples of different lengths, put together into one batch."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.readouts import IGNORED


def collate(rows: Sequence[Mapping[str, Tensor]], padding: int, side: str = "right") -> dict[str, Tensor]:
    """Pad and join batches of one example each.

    Args:
        rows: Tensors of shape (1, ...): tokens last; before them, of examples with choices, the choices.
        padding: The padding token.
        side: ``left`` or ``right``, where tokens are padded; choices that an example lacks follow those it has.

    Returns:
        (B, ...) tensors.
    """
    return {key: _joined([row[key] for row in rows], _filler(key, padding), key, side) for key in rows[0]}


def _filler(key: str, padding: int) -> int:
    return {"input_ids": padding, "labels": IGNORED}.get(key, 0)


def _joined(tensors: Sequence[Tensor], fill: int, key: str, side: str) -> Tensor:
    if tensors[0].dim() == 1:  # labels of whole examples
        return torch.cat(list(tensors))
    widest = [max(tensor.shape[axis] for tensor in tensors) for axis in range(1, tensors[0].dim())]
    padded = []
    for tensor in tensors:
        missing = [size - tensor.shape[axis] for axis, size in enumerate(widest, start=1)]
        # The last axis, that of tokens, comes first in torch's list.
        amounts = [amount for more in reversed(missing) for amount in (0, more)]
        if side == "left" and key != "option_lengths":
            amounts[:2] = reversed(amounts[:2])
        padded.append(torch.nn.functional.pad(tensor, amounts, value=fill))
    return torch.cat(padded)
