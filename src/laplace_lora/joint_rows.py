"""Jacobians of many examples as the rows of one, so that a structure's own accumulator gives their joint covariance."""

from collections.abc import Iterator

import torch
from torch import Tensor

from laplace_lora.errors import LaplaceLoRAError, MemoryLimitError
from laplace_lora.jacobians import MatrixGradient
from laplace_lora.posterior import CovarianceAccumulator

# Rows as they are, stacked, and in float64 (low_rank keeps those of all matrices).
_COPIES = 4


class JointRows:
    """Keeps every example's Jacobian rows, batch by batch, and ends with the covariance of all their outputs."""

    def __init__(self, limit: int) -> None:
        """Start empty.

        Args:
            limit: Bytes that may be held.
        """
        self.limit = limit
        self._batches: list[dict[int, list[Tensor]]] = [{}]
        self._logits: list[Tensor] = []
        self._contrasts: list[Tensor | None] = []
        self._nbytes = 0

    def receive(self, gradient: MatrixGradient) -> None:
        """Take one matrix's Jacobian of one row of a batch.

        Args:
            gradient: Rows of a matrix come in order.
        """
        jacobian = gradient.jacobian()
        rows = self._batches[-1].setdefault(gradient.index, [])
        assert gradient.row == len(rows), "rows come in order"
        rows.append(jacobian)
        self._nbytes += jacobian.numel() * jacobian.element_size()

    def end_batch(self, logits: Tensor, contrasts: Tensor | None) -> None:
        """Close a batch.

        Args:
            logits: (B, K) its logits.
            contrasts: (K, M) of the logits, whose Jacobians its rows are; None for the logits' own.

        Raises:
            MemoryLimitError: There are too many examples.
        """
        self._logits.append(logits)
        self._contrasts.append(contrasts)
        self._batches.append({})
        examples, outputs = sum(map(len, self._logits)), max(each.shape[1] for each in self._logits)
        needed = _COPIES * self._nbytes + 2 * 8 * (examples * outputs) ** 2
        if needed > self.limit:
            raise MemoryLimitError(
                f"the joint covariance of {examples} examples and more holds their Jacobians, {needed} bytes with "
                f"copies; the limit is {self.limit}. Give fewer examples (acquire: fewer --candidates), or raise "
                "LaplaceConfig(memory_limit_bytes=...)."
            )

    def covariance(self, collected: CovarianceAccumulator) -> tuple[Tensor, Tensor]:
        """Return means and covariances of all examples.

        Args:
            collected: An empty accumulator, for one scale of the prior.

        Returns:
            (n, K) logits, -inf beyond a batch's own, and (n, K, n, K) covariances, 0 there; float64.

        Raises:
            LaplaceLoRAError: There was no example.
        """
        if not self._logits:
            raise LaplaceLoRAError("there are no examples to predict; check the data loader.")
        device = self._logits[0].device
        outputs = max(logits.shape[1] for logits in self._logits)
        mean = torch.cat([_widened(logits.double(), outputs) for logits in self._logits])
        # Products of Jacobians are not to be rounded by an autocast that is meant for the model.
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            for index in sorted(self._batches[0]):
                for row, jacobian in enumerate(self._rows_of(index)):
                    collected.add(index, row, jacobian)
            covariance = collected.covariance()[0, 0].to(device)
        size = len(covariance) // len(mean)
        covariance = covariance.view(len(mean), size, len(mean), size)
        contrasts = self._contrasts[0]
        if contrasts is not None:
            contrasts = contrasts.to(covariance)
            covariance = torch.einsum("ka,iajb,lb->ikjl", contrasts, covariance, contrasts)
        return mean, covariance

    def _rows_of(self, index: int) -> Iterator[Tensor]:
        """Yield a matrix's Jacobians (1, out, in), example by example; zeros for options that a batch lacks."""
        most = max(len(batch[index]) for batch in self._batches if batch)
        for batch in self._batches:
            for example in range(len(batch[index][0]) if batch else 0):
                for row in range(most):
                    rows = batch[index]
                    own = rows[min(row, len(rows) - 1)][example : example + 1]
                    yield own if row < len(rows) else torch.zeros_like(own)


def _widened(logits: Tensor, outputs: int) -> Tensor:
    return torch.nn.functional.pad(logits, (0, outputs - logits.shape[1]), value=float("-inf"))
