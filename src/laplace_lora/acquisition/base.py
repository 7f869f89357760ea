"""What the scores share: the chosen batch, and the refusal of what has no information to give."""

import dataclasses

from torch import Tensor

from laplace_lora.errors import LaplaceLoRAError


@dataclasses.dataclass(frozen=True)
class Batch:
    """Examples chosen one after the other.

    Attributes:
        index: Their positions, the first chosen first.
        gains: What each label tells of the weights beyond the labels before it, in nats.
        draws: Posterior draws behind the gains, whose sum cannot exceed log(draws); None where they are exact.
    """

    index: list[int]
    gains: list[float]
    draws: int | None = None

    @property
    def information(self) -> float:
        """I(y_1 ... y_b ; theta) of the whole batch, in nats."""
        return sum(self.gains)


def require_scores(scores: Tensor, name: str) -> Tensor:
    """Refuse outputs that are observed neither as classes nor with noise.

    Args:
        scores: (B,) one number per example; (B, 0) where there is none.
        name: Of the score.

    Returns:
        (B,) the scores.

    Raises:
        LaplaceLoRAError: There is none.
    """
    if scores.dim() != 1:
        raise LaplaceLoRAError(
            f"{name} needs outputs that a label is observed of: classes, options, preferences, or numbers with noise; "
            "log-probabilities of texts and rewards of single texts have none. Rank those by predict's sd."
        )
    return scores
