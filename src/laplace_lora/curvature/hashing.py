"""Digests of examples, and random numbers that belong to an example, not to its place in a batch."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from laplace_lora.errors import UnsupportedInputError


def example_digests(batch: Mapping[str, Tensor], seed: int) -> list[bytes]:
    """Digest every example's real tokens.

    Args:
        batch: Model inputs with ``input_ids``.
        seed: Mixed into the digest.

    Returns:
        32 bytes per example, the same whatever the batch size, order, padding or device.

    Raises:
        UnsupportedInputError: There are no ``input_ids``.
    """
    ids = batch.get("input_ids")
    if ids is None:
        raise UnsupportedInputError(
            "the batch has no input_ids, which random signs and sampled labels are derived from; use fisher='exact'."
        )
    ids = ids.cpu()
    mask = batch["attention_mask"].cpu().bool() if "attention_mask" in batch else torch.ones_like(ids, dtype=torch.bool)
    key = str(seed).encode()
    return [
        hashlib.blake2b(row[keep].long().numpy().astype("<i8").tobytes(), digest_size=32, key=key).digest()
        for row, keep in zip(ids, mask, strict=True)
    ]


def uniform_numbers(digests: Sequence[bytes], count: int) -> Tensor:
    """Draw numbers for every example from its digest.

    Args:
        digests: One per example, from :func:`example_digests`.
        count: Numbers per example.

    Returns:
        (B, count) float64 in [0, 1); the first ones do not depend on ``count``.
    """
    rows = [np.random.default_rng(int.from_bytes(digest, "little")).random(count) for digest in digests]
    return torch.from_numpy(np.stack(rows))


def input_digests(batch: Mapping[str, Tensor]) -> list[bytes]:
    """Digest all of every example's inputs at its real positions.

    Args:
        batch: Model inputs, without labels.

    Returns:
        16 bytes per example, the same whatever the batch size, order, padding or device.
    """
    size = next(iter(batch.values())).shape[0]
    mask = batch["attention_mask"].cpu().bool() if "attention_mask" in batch else None
    digests = [hashlib.blake2b(digest_size=16) for _ in range(size)]
    for name in sorted(batch):
        values = batch[name].detach().cpu()
        if values.is_floating_point():
            values = values.double()
        for position in range(size):
            row = values[position]
            if mask is not None and row.shape[:1] == mask.shape[1:]:
                row = row[mask[position]]
            digests[position].update(row.contiguous().numpy().tobytes())
    return [digest.digest() for digest in digests]


def joined_digests(digests: Sequence[bytes], place: Tensor | None, examples: int, options: int) -> list[bytes]:
    """Digest examples that consist of several rows.

    Args:
        digests: One per row.
        place: (R,) positions of the rows among the examples' options; None where rows are examples.
        examples: Number of examples.
        options: Most options of an example.

    Returns:
        One digest per example, of its options in order.
    """
    if place is None:
        return list(digests)
    order = dict(zip(place.tolist(), digests, strict=True))
    return [
        hashlib.blake2b(
            b"".join(order[n * options + k] for k in range(options) if n * options + k in order), digest_size=32
        ).digest()
        for n in range(examples)
    ]


def digest_numbers(digests: Sequence[bytes]) -> Tensor:
    """Shorten digests to numbers that tell examples apart: two of 1e6 agree by chance with probability 3e-8.

    Args:
        digests: At least 8 bytes each.

    Returns:
        (B,) int64.
    """
    return torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in digests], dtype=torch.int64)
