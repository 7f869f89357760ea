"""Whether the rank of the factors' sketches suffices, from the effective number of parameters with and without tail."""

import dataclasses
import math

from torch import Tensor

from laplace_lora.posterior import Posterior

#: Up to this ratio the variances of sketched and whole factors agreed within 2 % (docs/sketch.md).
LARGEST_RATIO = 1.25


@dataclasses.dataclass(frozen=True)
class TailCheck:
    """Effective number of parameters, gamma, of a posterior whose wide factors are sketched.

    Attributes:
        with_tail: With the curvature that the sketch missed spread evenly, as the posterior has it.
        without_tail: With that curvature left out.
    """

    with_tail: float
    without_tail: float

    @classmethod
    def of(cls, posterior: Posterior, precision: Tensor) -> "TailCheck | None":
        """Count both ways.

        Args:
            posterior: The likelihood part.
            precision: (G,) prior precisions.

        Returns:
            The counts; None where nothing is guessed.
        """
        bare = posterior.without_tail()
        if bare is posterior:
            return None
        return cls(*(float(one.effective_parameters(precision).sum()) for one in (posterior, bare)))

    @property
    def ratio(self) -> float:
        """with_tail / without_tail, at least 1; 1 without any curvature."""
        if self.without_tail > 0.0:
            return self.with_tail / self.without_tail
        return math.inf if self.with_tail > 0.0 else 1.0

    def warning(self, rank: int, factor_rank: int | None = None) -> str | None:
        """Say what to do where the guess matters.

        Args:
            rank: Of the sketches.
            factor_rank: The setting that makes that part smaller, where it is not the sketches' own rank.

        Returns:
            One sentence and the remedy, or None where all is well.
        """
        if self.ratio <= LARGEST_RATIO:
            return None
        larger = 4 * (factor_rank or rank)
        return (
            f"wide Kronecker factors are sketched (rank {rank}), and the curvature that the sketches miss makes up "
            f"{self.with_tail - self.without_tail:.3g} of {self.with_tail:.3g} effective parameters, so that variances "
            f"rest on a guess; fit again with a larger rank, LaplaceConfig(factor_rank={larger}) or --factor-rank "
            f"{larger}."
        )
