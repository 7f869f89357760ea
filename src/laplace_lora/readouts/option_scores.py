"""Options scored one by one: by a multiple-choice encoder, or by their likelihood under a language model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES

from laplace_lora.errors import LaplaceLoRAError, UnsupportedInputError
from laplace_lora.readouts.base import Readout
from laplace_lora.readouts.inputs import base_model, prepare_inputs
from laplace_lora.readouts.language_head import (
    check_language_model,
    logits_at_positions,
    target_log_probabilities,
    target_positions,
)
from laplace_lora.readouts.options import option_rows
from laplace_lora.readouts.rows import Draw, ModelRows, Reading

Normalise = Literal["none", "tokens", "characters"]
#: Batch entries beside the model's inputs.
COMPLETION_MASK, OPTION_LENGTHS = "completion_mask", "option_lengths"


class OptionScores(Readout):
    """One score per option, each from an input row of its own: one backward pass serves all options.

    Batches hold inputs of shape (examples, options, tokens), as transformers' ``DataCollatorForMultipleChoice`` makes
    them; examples may have different numbers of options (padding options, with attention masks of 0, come last).
    With ``AutoModelForMultipleChoice`` scores are the model's logits. With a causal language model they are the
    log-likelihood of the option's text after its context, as lm-evaluation-harness scores options; the batch's
    ``completion_mask``, of the inputs' shape, is 1 at the tokens of that text.

    Probabilities are a softmax of the scores, and the covariance is that of the scores themselves.
    """

    name = "option_scores"
    separate = True
    full_covariance = True

    def __init__(self, normalise: Normalise = "none") -> None:
        """Set what log-likelihoods are divided by.

        Args:
            normalise: ``none`` (their sum), ``tokens`` (of the option's text), or ``characters`` (of the option's
                text: lm-evaluation-harness's ``acc_norm``; the batch's ``option_lengths``, (examples, options)). For
                language models.

        Raises:
            LaplaceLoRAError: It is none of these.
        """
        if normalise not in get_args(Normalise):
            raise LaplaceLoRAError(f"normalise={normalise!r} is not known; choose one of none, tokens, characters.")
        self.normalise = normalise

    def settings(self) -> dict[str, Any]:
        """See :meth:`Readout.settings`."""
        return {"normalise": self.normalise}

    def check_model(self, model: nn.Module) -> None:
        """Refuse what is neither a multiple-choice model nor a causal language model.

        Args:
            model: The PEFT model.

        Raises:
            LaplaceLoRAError: It cannot be read this way.
        """
        if not is_multiple_choice(model):
            check_language_model(type(self).__name__, model)
        elif self.normalise != "none":
            raise LaplaceLoRAError(
                f"normalise={self.normalise!r} is for language models, and {type(base_model(model)).__name__} gives "
                "scores of its own; leave it out."
            )

    def rows(self, batch: Mapping[str, Tensor], labels: Tensor | None) -> ModelRows:
        """See :meth:`Readout.rows`.

        Args:
            batch: (B, K, T) model inputs.
            labels: Not used.

        Returns:
            One row per option.

        Raises:
            UnsupportedInputError: An option has no text of its own, or an entry beside the inputs is malformed.
        """
        extra = {key: value for key, value in batch.items() if key in (COMPLETION_MASK, OPTION_LENGTHS)}
        rows, place = option_rows(type(self).__name__, {k: v for k, v in batch.items() if k not in extra})
        if COMPLETION_MASK not in extra:
            return rows
        _check_shape(COMPLETION_MASK, extra[COMPLETION_MASK], batch["input_ids"].shape)
        wanted = extra[COMPLETION_MASK].bool().flatten(0, 1)[place]
        if rows.mask is not None and bool((wanted & ~rows.mask).any()):
            raise UnsupportedInputError("completion_mask marks padding positions; set them to 0.")
        positions, targets = target_positions(rows.inputs["input_ids"], wanted, rows.mask)
        counts = targets.mask.sum(dim=1)
        if not bool((counts == wanted.sum(dim=1)).all()) or not bool((counts > 0).all()):
            raise UnsupportedInputError(
                "an option's completion_mask marks no token, or its first one, which nothing precedes; begin inputs "
                "with a context, or with the tokenizer's first token."
            )
        lengths = counts if self.normalise == "tokens" else None
        if self.normalise == "characters":
            lengths = self._characters(extra, place)
        return dataclasses.replace(rows, positions=positions, targets=targets, lengths=lengths)

    def _characters(self, extra: Mapping[str, Tensor], place: Tensor) -> Tensor:
        if OPTION_LENGTHS not in extra:
            raise UnsupportedInputError(
                "normalise='characters' needs the options' lengths; add 'option_lengths' (examples, options) to the "
                "batch."
            )
        _check_shape(OPTION_LENGTHS, extra[OPTION_LENGTHS], extra[COMPLETION_MASK].shape[:2])
        lengths = extra[OPTION_LENGTHS].flatten()[place]
        if not bool((lengths > 0).all()):
            raise UnsupportedInputError("an option has an option_lengths of 0; give the number of its characters.")
        return lengths

    def read(self, model: nn.Module, rows: ModelRows, draw: Draw | None = None) -> Reading:
        """See :meth:`Readout.read`.

        Args:
            model: The PEFT model.
            rows: The batch.
            draw: Not used.

        Returns:
            (R,) scores.

        Raises:
            UnsupportedInputError: A language model's batch has no ``completion_mask``.
        """
        if is_multiple_choice(model):
            # Each option is an example of one choice: the model then does not need to know which belong together.
            inputs = {key: value[:, None] for key, value in prepare_inputs(model, rows.inputs).items()}
            return Reading(model(**inputs).logits[:, 0], rows.places)
        if rows.targets is None:
            raise UnsupportedInputError(
                "the batch has no completion_mask, which says where an option's text is; add it, 1 at these tokens."
            )
        logits = logits_at_positions(type(self).__name__, model, rows)
        scores = target_log_probabilities(logits, rows.targets)
        return Reading(scores if rows.lengths is None else scores / rows.lengths.to(scores), rows.places)


def _check_shape(name: str, values: Tensor, shape: Sequence[int]) -> None:
    if tuple(values.shape) != tuple(shape):
        raise UnsupportedInputError(
            f"{name} has shape {tuple(values.shape)} instead of {tuple(shape)}; collate it as the inputs are."
        )


def is_multiple_choice(model: nn.Module) -> bool:
    """Say whether a model was loaded with ``AutoModelForMultipleChoice``.

    Args:
        model: The PEFT model, or its base.

    Returns:
        Whether it gives one logit per option.
    """
    return type(base_model(model)).__name__ in MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES.values()
