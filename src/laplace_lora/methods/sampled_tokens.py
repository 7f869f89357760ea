"""Next-token probabilities averaged over adapters drawn from the posterior."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laplace_lora.adapters import moved_to
from laplace_lora.readouts import Readout, split_labels, target_probabilities


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """What a method says of the tokens of texts, one after the other.

    Attributes:
        counts: (B,) tokens of each text.
        log_probability: (tokens,) of the token that is there, in nats.
        confidence: (tokens,) of the likeliest token.
        correct: (tokens,) 1.0 where the two are the same.
    """

    counts: Any
    log_probability: Any
    confidence: Any
    correct: Any

    @staticmethod
    def joined(parts: "Sequence[TokenScores]") -> "TokenScores":
        """Join batches.

        Args:
            parts: At least one.

        Returns:
            All texts, in order.
        """
        fields = [field.name for field in dataclasses.fields(TokenScores)]
        return TokenScores(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


@torch.no_grad()
def sampled_token_scores(
    model: nn.Module, readout: Readout, batch: Mapping[str, Any], states: Sequence[Mapping[str, Tensor]]
) -> dict[str, TokenScores]:
    """Score a batch's labelled tokens by the trained adapter and by the mean over drawn ones.

    Holds two (texts, labelled tokens, vocabulary) tensors. Probabilities are averaged, not logits.

    Args:
        model: The PEFT model; its weights are put back.
        readout: Of next tokens.
        batch: Token ids and labels.
        states: Adapters, from :meth:`LaplaceLoRA.sample`.

    Returns:
        The scores of ``map`` (the trained adapter) and ``laplace`` (the mean).
    """
    inputs, labels = split_labels(batch, next(model.parameters()).device)
    rows = readout.rows(inputs, labels)
    assert rows.targets is not None
    mask = rows.targets.mask
    plain = target_probabilities(model, rows)
    mean = torch.zeros_like(plain)
    for state in states:
        with moved_to(model, state):
            mean += target_probabilities(model, rows) / len(states)

    def scores(probabilities: Tensor) -> TokenScores:
        chosen = probabilities.gather(2, rows.targets.tokens[..., None])[..., 0][mask]  # type: ignore[union-attr]
        top = probabilities.max(dim=2)
        right = (top.indices == rows.targets.tokens)[mask]  # type: ignore[union-attr]
        return TokenScores(
            mask.sum(dim=1).cpu().numpy(),
            chosen.clamp(min=1e-300).log().cpu().numpy(),
            top.values[mask].cpu().numpy(),
            right.double().cpu().numpy(),
        )

    return {"map": scores(plain), "laplace": scores(mean)}
