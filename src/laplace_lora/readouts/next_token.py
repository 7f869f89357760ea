"""Instruction-tuned models: the likelihood of every next token of a text."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from laplace_lora.errors import UnsupportedInputError
from laplace_lora.readouts.base import Readout, plain_rows
from laplace_lora.readouts.language_head import (
    check_language_model,
    logits_at_positions,
    target_log_probabilities,
    target_positions,
)
from laplace_lora.readouts.rows import Draw, ModelRows, Reading, Targets

#: What labels hold where a token's probability does not count.
IGNORED = -100


class NextToken(Readout):
    """The log-probability of a text's labelled tokens, each given those before it.

    Labels have the inputs' shape and are -100 where nothing counts, as ``SFTTrainer`` makes them. ``fit`` takes one
    backward pass per batch: of the log-probability of tokens sampled from the model at the labelled positions
    (``fisher="mc"``, unbiased for the GGN), or of the data's own (``fisher="empirical"``). ``predict`` gives the
    log-probability of each text's labelled tokens, ``mean`` (B, 1) in nats, and its variance ``covariance`` (B, 1, 1).
    """

    name = "next_token"
    likelihood = "tokens"
    full_covariance = True

    def check_model(self, model: nn.Module) -> None:
        """See :meth:`Readout.check_model`."""
        check_language_model(type(self).__name__, model)

    def rows(self, batch: Mapping[str, Tensor], labels: Tensor | None) -> ModelRows:
        """See :meth:`Readout.rows`.

        Args:
            batch: (B, T) model inputs.
            labels: (B, T) tokens, or -100.

        Returns:
            The rows, read before the labelled tokens.

        Raises:
            UnsupportedInputError: There are no labels of that shape, or labels at padding.
        """
        plain = plain_rows(batch)
        tokens = batch.get("input_ids")
        if tokens is None or labels is None or labels.shape != tokens.shape:
            shape = "none" if labels is None else f"of shape {tuple(labels.shape)}"
            raise UnsupportedInputError(
                f"NextToken needs input_ids and labels of the same shape, the labels are {shape}; label the tokens "
                "that count, and others with -100."
            )
        if labels.is_floating_point():
            raise UnsupportedInputError(f"labels are {labels.dtype}, not tokens; give whole numbers.")
        wanted = labels != IGNORED
        if plain.mask is not None and bool((wanted & ~plain.mask).any()):
            raise UnsupportedInputError("labels at padding positions are tokens; set them to -100.")
        positions, targets = target_positions(labels, wanted, plain.mask)
        return ModelRows(plain.inputs, plain.count, plain.mask, positions=positions, targets=targets)

    def read(self, model: nn.Module, rows: ModelRows, draw: Draw | None = None) -> Reading:
        """See :meth:`Readout.read`.

        Args:
            model: The PEFT model.
            rows: The batch.
            draw: If given, tokens are sampled from the model.

        Returns:
            (B, 1) log-probabilities of the labelled tokens, or of sampled ones in their place.

        Raises:
            UnsupportedInputError: A label is no token of the model.
        """
        assert rows.targets is not None
        logits = logits_at_positions(type(self).__name__, model, rows)
        _check_tokens(rows.targets.tokens, logits.shape[2])
        scores = target_log_probabilities(logits, rows.targets)
        chosen = logits.detach().argmax(dim=2)
        outputs = scores
        if draw is not None:
            outputs = target_log_probabilities(logits, _sampled(logits, rows.targets, draw))
        return Reading(
            outputs[:, None],
            log_likelihood=scores.detach().double(),
            correct=int(((chosen == rows.targets.tokens) & rows.targets.mask).sum()),
            targets=int(rows.targets.mask.sum()),
        )


def _check_tokens(tokens: Tensor, vocabulary: int) -> None:
    if bool(((tokens < 0) | (tokens >= vocabulary)).any()):
        raise UnsupportedInputError(
            f"a label is no token of the model, which has {vocabulary}; use its own tokenizer, and -100 for tokens "
            "that do not count."
        )


@torch.no_grad()
def _sampled(logits: Tensor, targets: Targets, draw: Draw) -> Targets:
    """Draw tokens from the model's own distribution, by inversion, one text at a time."""
    uniform = draw(logits.shape[1]).to(logits.device)
    tokens = torch.zeros_like(targets.tokens)
    for row, numbers in enumerate(uniform):
        cumulative = torch.softmax(logits[row].double(), dim=-1).cumsum(dim=-1)
        drawn = torch.searchsorted(cumulative, numbers[:, None], right=True)[:, 0]
        tokens[row] = drawn.clamp(max=logits.shape[2] - 1)
    return Targets(tokens, targets.mask)
