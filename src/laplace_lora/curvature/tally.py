"""What a pass over the training data finds beside the curvature: counts, likelihood, and inputs known again."""

import dataclasses

import torch
from torch import Tensor

from laplace_lora.curvature.hashing import digest_numbers, input_digests, joined_digests
from laplace_lora.errors import UnsupportedInputError
from laplace_lora.jacobians import statistics_dtype
from laplace_lora.likelihoods import Likelihood
from laplace_lora.readouts import ModelRows, Reading


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What one pass over the training data leaves behind, beside the curvature.

    Attributes:
        examples: Number of training examples, N.
        classes: Number of logits, K.
        log_likelihood: log p(D | theta*) in nats, or None without labels.
        accuracy: Share of training examples that the trained adapter gets right, or None without labels
            or classes.
        inputs: (N,) int64 numbers that the examples' inputs are known by again, in ascending order.
        targets: Number of labelled tokens, where the likelihood is that of tokens; then ``accuracy`` is theirs.
        tuned_on: (n,) int64 the same of the inputs of held-out data that prior, temperature or noise were chosen on
            afterwards; None where there were none.
    """

    examples: int
    classes: int
    log_likelihood: float | None
    accuracy: float | None
    inputs: Tensor
    targets: int | None = None
    tuned_on: Tensor | None = None

    @property
    def nll(self) -> float | None:
        """Mean negative log-likelihood of the trained adapter on these examples, in nats, or None without labels."""
        return None if self.log_likelihood is None else -self.log_likelihood / self.examples

    def seen(self, rows: ModelRows) -> Tensor:
        """Say which examples of a batch were among the training examples.

        Args:
            rows: The batch as the model sees it.

        Returns:
            (B,) bool.
        """
        return torch.isin(row_numbers(rows), self.inputs)

    def tuned(self, rows: ModelRows) -> Tensor:
        """Say which examples of a batch were among the held-out examples that something was chosen on.

        Args:
            rows: The batch as the model sees it.

        Returns:
            (B,) bool.
        """
        numbers = row_numbers(rows)
        known = torch.zeros(0, dtype=torch.int64) if self.tuned_on is None else self.tuned_on
        return torch.isin(numbers, known)


class Tally:
    """Counts examples and adds up what their labels say of the trained adapter."""

    def __init__(self, likelihood: Likelihood) -> None:
        """Start at nothing.

        Args:
            likelihood: Of labels given the logits.
        """
        self.likelihood = likelihood
        self.examples = 0
        self.labelled = 0
        self.log_likelihood = 0.0
        self.correct = 0.0
        self.targets = 0

    def add(self, reading: Reading, labels: Tensor | None) -> None:
        """Add a batch.

        Args:
            reading: What was read from the model.
            labels: (B,) of classes or numbers, or None.

        Raises:
            UnsupportedInputError: Some batches have labels, and some have none.
        """
        logits = reading.logits
        self.examples += len(logits)
        if reading.log_likelihood is not None:
            self.labelled += len(logits)
            self.log_likelihood += float(reading.log_likelihood.sum())
            self.correct += reading.correct or 0
            self.targets += reading.targets or 0
        elif labels is not None:
            self.labelled += len(logits)
            self.log_likelihood += float(self.likelihood.log_likelihood(logits, labels).sum())
            if self.likelihood.shift_invariant:
                self.correct += float(_share_right(logits, labels).sum())
        if self.labelled not in (0, self.examples):
            raise UnsupportedInputError("some batches have labels and some have none; give labels with all or none.")

    def result(self, classes: int, inputs: Tensor) -> FitResult:
        """End the count.

        Args:
            classes: Number of logits.
            inputs: (N,) numbers of the examples' inputs, in ascending order.

        Returns:
            What was found.
        """
        labelled = self.labelled > 0
        counted = self.targets or (self.examples if labelled and self.likelihood.shift_invariant else 0)
        return FitResult(
            examples=self.examples,
            classes=classes,
            log_likelihood=self.log_likelihood if labelled else None,
            accuracy=self.correct / counted if counted else None,
            inputs=inputs,
            targets=self.targets or None,
        )


def _share_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 where the label's logit is the largest, 0 where it is not, and 1 / m where it ties with m - 1 others."""
    largest = logits.max(dim=-1, keepdim=True).values
    # Equal inputs give logits that are equal but for rounding.
    rounding = 64.0 * torch.finfo(statistics_dtype(logits.dtype)).eps
    best = logits >= largest - rounding * largest.abs().clamp(min=1.0)
    return best.gather(1, labels.long()[:, None])[:, 0].double() / best.sum(dim=-1)


def row_numbers(rows: ModelRows) -> Tensor:
    """Return the numbers that a batch's inputs are known by again.

    Args:
        rows: The batch as the model sees it.

    Returns:
        (B,) int64, on the host.
    """
    return digest_numbers(row_digests(rows))


def row_digests(rows: ModelRows) -> list[bytes]:
    """Digest all of every example's inputs.

    Args:
        rows: The batch as the model sees it.

    Returns:
        16 bytes per example.
    """
    places = rows.places
    place = None if places is None else places.place
    return joined_digests(input_digests(rows.inputs), place, rows.examples, 1 if places is None else places.options)
