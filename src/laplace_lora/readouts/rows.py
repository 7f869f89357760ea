"""A batch as the model sees it, and what is read of the model's outputs."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from laplace_lora.errors import UnsupportedInputError


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the rows that the model sees belong: row i is option ``place[i] % K`` of example ``place[i] // K``.

    Attributes:
        place: (R,) positions in a (B, K) table, all different.
        examples: B.
        options: K, of the example that has most.
    """

    place: Tensor
    examples: int
    options: int

    def spread(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Put rows into the table.

        Args:
            rows: (R, ...).
            fill: What absent options hold.

        Returns:
            (B, K, ...).
        """
        size = self.examples * self.options
        table = rows.new_full((size, *rows.shape[1:]), fill)
        return table.index_copy(0, self.place, rows).view(self.examples, self.options, *rows.shape[1:])


@dataclasses.dataclass(frozen=True)
class Targets:
    """Tokens whose probability counts, and the positions that they are predicted from.

    Attributes:
        tokens: (R, M) tokens.
        mask: (R, M) True where there is one; rows have different numbers of them.
    """

    tokens: Tensor
    mask: Tensor


@dataclasses.dataclass(frozen=True)
class ModelRows:
    """A batch as the model sees it.

    Attributes:
        inputs: Model inputs of R rows, without labels, as they came.
        count: R.
        mask: (R, T) True at real tokens; None where there is no padding.
        places: Where each row belongs, if examples have several; None where rows are examples.
        positions: (R, M) positions at which the output embeddings are read; None for all.
        targets: What is scored at these positions; None where logits are read.
        lengths: (R,) what scores are divided by; None for 1.
    """

    inputs: dict[str, Tensor]
    count: int
    mask: Tensor | None
    places: Places | None = None
    positions: Tensor | None = None
    targets: Targets | None = None
    lengths: Tensor | None = None

    @property
    def examples(self) -> int:
        """Number of examples, B."""
        return self.count if self.places is None else self.places.examples

    def mask_for(self, name: str, shape: Sequence[int], at_head: bool) -> Tensor | None:
        """Match a layer's output to the batch's rows and tokens.

        Args:
            name: The layer, for messages.
            shape: Its output's shape without features: (R,) pooled, or (R, T).
            at_head: Whether it is in the output embeddings, which see chosen positions alone.

        Returns:
            The mask that applies; None where everything is real.

        Raises:
            UnsupportedInputError: The output is laid out in another way.
        """
        shape = tuple(shape)
        if shape == (self.count,):
            return None
        if at_head and self.positions is not None and shape == tuple(self.positions.shape):
            return None if self.targets is None else self.targets.mask
        if len(shape) == 2 and shape[0] == self.count and (self.mask is None or shape == tuple(self.mask.shape)):
            return self.mask
        raise UnsupportedInputError(
            f"{name} received inputs of shape {shape} for {self.count} examples, which cannot be matched to "
            "examples and tokens; give batches without padding, or retrain without this module."
        )


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one forward pass gave.

    Attributes:
        outputs: (B, K) logits; with places (R,) scores of the rows.
        places: As of the rows.
        log_likelihood: (B,) log p(labels) where the readout is a likelihood of its own, in nats; else None.
        correct: Number of targets that are the likeliest token; None where there are none.
        targets: Number of targets; None where there are none.
    """

    outputs: Tensor
    places: Places | None = None
    log_likelihood: Tensor | None = None
    correct: int | None = None
    targets: int | None = None

    @property
    def logits(self) -> Tensor:
        """(B, K) logits, -inf where an example has fewer options than K."""
        return self.outputs if self.places is None else self.places.spread(self.outputs, float("-inf"))

    def detached(self) -> "Reading":
        """Return the same without its graph."""
        return dataclasses.replace(self, outputs=self.outputs.detach())


class Draw(Protocol):
    """Random numbers that belong to examples: they follow from contents, not from batch, order or padding."""

    def __call__(self, count: int) -> Tensor:
        """Return (R, count) float64 numbers in [0, 1); the first ones do not depend on ``count``."""


def last_positions(mask: Tensor | None, shape: Sequence[int], device: torch.device) -> Tensor:
    """Find the last real position of every row.

    Args:
        mask: (R, T) True at real tokens, or None.
        shape: (R, T).
        device: Where to.

    Returns:
        (R, 1) positions.
    """
    rows, length = shape
    if mask is None:
        return torch.full((rows, 1), length - 1, device=device)
    return (length - 1 - mask.flip(1).to(torch.int8).argmax(dim=1))[:, None].to(device)
