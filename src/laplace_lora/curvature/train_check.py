"""A sample of training Jacobians, kept so that a tuned prior can be checked without another model pass."""

import dataclasses
import heapq
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from laplace_lora.jacobians import MatrixGradient

# Enough to see an NLL rise by a tenth of a nat, and few enough to cost less than a hundredth of the fit.
MOST_EXAMPLES = 40


@dataclasses.dataclass(frozen=True)
class TrainCheckExamples:
    """Training examples with their Jacobians along unit directions of the logits.

    Attributes:
        logits: (n, K) float64.
        labels: (n,) class indices.
        directions: (n, K, M) float64 unit directions.
        jacobians: Per weight matrix (n, M, out, in), on the host.
        total: Number of training examples they were drawn from.
    """

    logits: Tensor
    labels: Tensor
    directions: Tensor
    jacobians: list[Tensor]
    total: int


@dataclasses.dataclass
class _Kept:
    logits: Tensor
    label: Tensor
    directions: Tensor
    jacobians: dict[tuple[int, int], Tensor]


class TrainCheck:
    """Keeps the examples of smallest digest, as many as fit a byte budget, 40 at the most.

    Which examples are kept follows from their contents alone, not from batch size or order.
    """

    def __init__(self, parameters: int, budget_bytes: int) -> None:
        """Start empty.

        Args:
            parameters: Number of weights of the posterior.
            budget_bytes: Most bytes to hold.
        """
        self._parameters = parameters
        self._budget = budget_bytes
        self._heap: list[tuple[int, int]] = []
        self._kept: dict[int, _Kept] = {}
        self._batch: dict[int, int] = {}
        self._counter = 0
        self._rows = 1

    def begin(self, digests: Sequence[bytes], logits: Tensor, labels: Tensor, directions: Tensor) -> None:
        """Choose which examples of a batch to keep.

        Args:
            digests: One per example.
            logits: (B, K).
            labels: (B,).
            directions: (B, K, M).
        """
        self._rows = max(self._rows, directions.shape[-1])
        capacity = min(MOST_EXAMPLES, self._budget // max(1, 4 * self._parameters * self._rows))
        self._batch = {}
        self._shrink(capacity)  # examples with more directions than any before leave room for fewer
        options = torch.isfinite(logits).sum(dim=-1).tolist()
        for position, digest in enumerate(digests):
            entry = (-int.from_bytes(digest[:8], "big"), self._counter)
            self._counter += 1
            full = len(self._heap) >= capacity
            # With one option there is no choice, and nothing to be right about.
            if options[position] < 2 or not capacity or (full and entry < self._heap[0]):
                continue
            heapq.heappush(self._heap, entry)
            self._batch[position] = entry[1]
            # Absent options come last, and so do their columns.
            own = slice(0, options[position])
            columns = slice(0, options[position] - 1 if directions.shape[-1] > 1 else 1)
            self._kept[entry[1]] = _Kept(
                logits[position, own].double().cpu(),
                labels[position].cpu(),
                directions[position, own, columns].double().cpu(),
                {},
            )
            self._shrink(capacity)

    def update(self, gradient: MatrixGradient) -> None:
        """Keep the chosen examples' Jacobians of one row at one weight matrix.

        Args:
            gradient: Inputs and gradients for unit directions of the logits.
        """
        if not self._batch:
            return
        jacobians = gradient.select(torch.tensor(list(self._batch))).jacobian().cpu()
        for key, jacobian in zip(self._batch.values(), jacobians, strict=True):
            self._kept[key].jacobians[(gradient.index, gradient.row)] = jacobian

    def finalise(self, total: int) -> TrainCheckExamples | None:
        """Stack what was kept.

        Args:
            total: Number of training examples seen.

        Returns:
            The examples in order of their digests, or None if not one fitted the budget.
        """
        if not self._kept:
            return None
        kept = [self._kept[key] for _, key in sorted(self._heap, reverse=True)]
        sites = 1 + max(index for index, _ in kept[0].jacobians)
        rows, options = max(e.directions.shape[1] for e in kept), max(len(e.logits) for e in kept)
        jacobians = [torch.stack([_stacked(example, index, rows) for example in kept]) for index in range(sites)]
        return TrainCheckExamples(
            torch.stack([nn.functional.pad(e.logits, (0, options - len(e.logits)), value=-torch.inf) for e in kept]),
            torch.stack([example.label for example in kept]),
            torch.stack([_widened(example, options, rows) for example in kept]),
            jacobians,
            total,
        )

    def _shrink(self, capacity: int) -> None:
        while len(self._heap) > capacity:
            _, dropped = heapq.heappop(self._heap)
            self._kept.pop(dropped)
            self._batch = {p: k for p, k in self._batch.items() if k != dropped}


def _stacked(example: _Kept, index: int, rows: int) -> Tensor:
    """Stack an example's Jacobians at one matrix, 0 where it has fewer directions than others."""
    own = [example.jacobians[(index, row)] for row in range(example.directions.shape[1])]
    return torch.stack(own + [torch.zeros_like(own[0])] * (rows - len(own)))


def _widened(example: _Kept, options: int, rows: int) -> Tensor:
    """Add absent options and, where all directions are held, one for each: from the likeliest option to it."""
    # Along these nothing is said to vary. It does not matter: only differences between present options are asked for.
    own_options, own_rows = example.directions.shape
    directions = nn.functional.pad(example.directions, (0, rows - own_rows, 0, options - own_options))
    if rows == options - 1:
        for option, row in zip(range(own_options, options), range(own_rows, rows), strict=True):
            directions[option, row] = 0.5**0.5
            directions[example.logits.argmax(), row] = -(0.5**0.5)
    return directions
