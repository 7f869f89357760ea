"""The fold that every curvature is: start empty, update per gradient, merge two, finalise."""

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.errors import UnsupportedInputError
from laplace_lora.jacobians import MatrixGradient
from laplace_lora.matrices import MatrixShape


class Curvature(abc.ABC):
    """Sufficient statistics of the GGN of one data set.

    The data enter only through sums (or, for ``exact``, stacked rows), so neither batch size nor order
    matters and two halves of a data set merge into the whole; but for ``kron_svd``, which cuts after every batch.

    Attributes:
        passes: How often the data are read, this pass included.
    """

    passes: ClassVar[int] = 1

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig) -> None:
        """Start empty.

        Args:
            shapes: One per weight matrix.
            config: Settings of the posterior.
        """
        self.shapes = tuple(shapes)
        self.config = config
        self.dtype = torch.float32

    def next_pass(self) -> "Curvature | None":
        """Return what is to be folded in another pass over the same data, once this one is at its end.

        Returns:
            An empty fold of the same matrices, whose end is the curvature's; a new one with every call. None where
            this one's end is.
        """
        return None

    def check_memory(self, rows_per_example: int, examples: int | None) -> None:  # noqa: B027 - most have no limit
        """Refuse what would not fit, before anything is computed.

        Args:
            rows_per_example: GGN rows each example adds.
            examples: How many examples there will be, if that is known.
        """

    @abc.abstractmethod
    def update(self, gradient: MatrixGradient, weights: Tensor) -> None:
        """Add one row of every example of a batch at one weight matrix.

        Args:
            gradient: Inputs and gradients, for unit directions of the logits.
            weights: (B,) weights of the directions.
        """

    def discard(self) -> None:  # noqa: B027 - most hold memory alone
        """Let go of what is held outside memory; called when a pass ends early."""

    def end_batch(self) -> None:  # noqa: B027 - most keep nothing of a batch
        """Let go of what was kept of the batch; called when all its gradients are in."""

    @abc.abstractmethod
    def merge(self, other: "Curvature") -> None:
        """Add the statistics of other examples of the same model.

        Args:
            other: A curvature of the same class and shapes; left as it is.
        """

    @abc.abstractmethod
    def finalise(self) -> dict[str, list[Tensor]]:
        """End the fold.

        Returns:
            Named lists of one tensor per matrix, from which the structure's posterior is built.
        """

    def require_finite(self, statistics: Mapping[str, Sequence[Tensor]]) -> None:
        """Refuse curvature that overflowed, though the logits did not.

        Args:
            statistics: What the fold ended with.
        """
        for tensors in statistics.values():
            for tensor, shape in zip(tensors, self.shapes, strict=True):
                require_finite_sums([tensor], shape)


def add_sums(mine: list[Tensor | None], other: list[Tensor | None]) -> None:
    """Add two lists of optional sums, in place of the first.

    Args:
        mine: Sums to add to.
        other: Sums to add.
    """
    for index, value in enumerate(other):
        if value is not None:
            held = mine[index]
            mine[index] = value.clone() if held is None else held + value


def require_finite_sums(sums: Sequence[Tensor], shape: MatrixShape) -> None:
    """Refuse curvature of one matrix that overflowed.

    Args:
        sums: What was collected of it.
        shape: The matrix.

    Raises:
        UnsupportedInputError: A number is NaN or infinite.
    """
    if not all(bool(torch.isfinite(tensor).all()) for tensor in sums):
        raise UnsupportedInputError(
            f"the curvature of {shape.name} is NaN or infinite, though the logits are not: gradients overflow; load "
            "the base in float32, or train again with a lower learning rate."
        )
