"""Batches on their way to the model, counted if the posterior was fitted to them."""

import dataclasses
from collections.abc import Iterator

from torch import Tensor

from laplace_lora.commands.console import Console
from laplace_lora.data import Source
from laplace_lora.data.encoding import Batches
from laplace_lora.laplace import LaplaceLoRA


@dataclasses.dataclass
class Watched:
    """A data file in batches.

    Attributes:
        batches: The batches.
        la: The fitted estimator.
        seen: Rows so far that were in its training data.
        tuned: Rows so far that its prior, temperature or noise were chosen on.
    """

    batches: Batches
    la: LaplaceLoRA
    seen: int = 0
    tuned: int = 0

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches in order."""
        for batch in self.batches:
            self.seen += int(self.la.seen_in_fit(batch).sum())
            self.tuned += int(self.la.seen_in_tuning(batch).sum())
            yield batch

    def warn(self, console: Console, source: Source | None, consequence: str) -> None:
        """Say so if rows were in the training data.

        Args:
            console: Takes the warning.
            source: Where they are from.
            consequence: What that does.
        """
        if self.seen:
            console.warn(
                f"{self.seen} of {len(self.batches.file)} rows in {source} were in the posterior's training data: "
                f"{consequence}; give other rows."
            )
