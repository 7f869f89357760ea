"""A sample of training Jacobians, kept so that a tuned prior can be checked without another model pass."""

import dataclasses
import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

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

    def begin(self, digests: Sequence[bytes], logits: Tensor, labels: Tensor, directions: Tensor) -> None:
        """Choose which examples of a batch to keep.

        Args:
            digests: One per example.
            logits: (B, K).
            labels: (B,).
            directions: (B, K, M).
        """
        capacity = min(MOST_EXAMPLES, self._budget // max(1, 4 * self._parameters * directions.shape[-1]))
        self._batch = {}
        for position, digest in enumerate(digests):
            entry = (-int.from_bytes(digest[:8], "big"), self._counter)
            self._counter += 1
            if len(self._heap) < capacity:
                heapq.heappush(self._heap, entry)
            elif capacity and entry > self._heap[0]:
                _, dropped = heapq.heapreplace(self._heap, entry)
                self._kept.pop(dropped)
                self._batch = {p: k for p, k in self._batch.items() if k != dropped}
            else:
                continue
            self._batch[position] = entry[1]
            self._kept[entry[1]] = _Kept(
                logits[position].double().cpu(), labels[position].cpu(), directions[position].double().cpu(), {}
            )

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
        rows = kept[0].directions.shape[-1]
        jacobians = [
            torch.stack([torch.stack([example.jacobians[(index, row)] for row in range(rows)]) for example in kept])
            for index in range(sites)
        ]
        return TrainCheckExamples(
            torch.stack([example.logits for example in kept]),
            torch.stack([example.label for example in kept]),
            torch.stack([example.directions for example in kept]),
            jacobians,
            total,
        )
