"""The logits of a sequence classification model."""

from collections.abc import Mapping

from torch import Tensor, nn

from laplace_lora.errors import UnsupportedInputError
from laplace_lora.readouts.base import Readout, plain_rows
from laplace_lora.readouts.inputs import is_causal, model_config, padding_token, prepare_inputs
from laplace_lora.readouts.rows import Draw, ModelRows, Reading


class ClassLogits(Readout):
    """The K logits of a sequence classification model.

    Padding on the left is handled for causal models, whose positions are counted from the first real
    token, and refused for encoders, which pool the first position.
    """

    name = "class_logits"
    likelihood = "configured"
    reads_head = True

    def check_model(self, model: nn.Module) -> None:
        """Refuse models whose training loss is not a softmax over one label.

        Args:
            model: The PEFT model.

        Raises:
            UnsupportedInputError: The model is trained for several labels at once.
        """
        problem = getattr(model_config(model), "problem_type", None)
        if problem == "multi_label_classification":
            raise UnsupportedInputError(
                "the model is trained for several labels at once (problem_type='multi_label_classification'), but "
                "ClassLogits is a softmax over one; fit one adapter per label."
            )

    def rows(self, batch: Mapping[str, Tensor], labels: Tensor | None) -> ModelRows:
        """See :meth:`Readout.rows`."""
        return plain_rows(batch)

    def read(self, model: nn.Module, rows: ModelRows, draw: Draw | None = None) -> Reading:
        """See :meth:`Readout.read`: (B, K) logits."""
        return Reading(sequence_logits(self, model, rows))


def sequence_logits(readout: Readout, model: nn.Module, rows: ModelRows) -> Tensor:
    """Run a sequence classification model.

    Args:
        readout: Who asks, for messages.
        model: The PEFT model.
        rows: The batch.

    Returns:
        (R, K) logits in the model's dtype.

    Raises:
        UnsupportedInputError: The model's output is not one row of logits per input, or it cannot tell padding.
    """
    if rows.count > 1 and is_causal(model) and padding_token(model) is None:
        raise UnsupportedInputError(
            "the model reads its answer from the last token that is no padding, and knows no padding token; set "
            "model.config.pad_token_id = tokenizer.pad_token_id."
        )
    outputs = model(**prepare_inputs(model, _padded_as_known(model, rows)))
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != rows.count:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(outputs).__name__
        raise UnsupportedInputError(
            f"{type(readout).__name__} expects logits of shape (batch, classes), the model gave {shape}; load it with "
            "AutoModelForSequenceClassification."
        )
    return logits


def _padded_as_known(model: nn.Module, rows: ModelRows) -> dict[str, Tensor]:
    """Put the model's own padding token where padding is: decoders find the last real token by it."""
    known, tokens = padding_token(model), rows.inputs.get("input_ids")
    if rows.mask is None or known is None or tokens is None:
        return rows.inputs
    return {**rows.inputs, "input_ids": tokens.masked_fill(~rows.mask, known)}
