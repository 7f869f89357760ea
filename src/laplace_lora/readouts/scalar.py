"""One real output: regression, and the reward of a single text."""

from collections.abc import Mapping

from torch import Tensor, nn

from laplace_lora.errors import UnsupportedInputError
from laplace_lora.readouts.base import Readout, plain_rows
from laplace_lora.readouts.class_logits import sequence_logits
from laplace_lora.readouts.inputs import model_config
from laplace_lora.readouts.rows import Draw, ModelRows, Reading


class Scalar(Readout):
    """The one output of a sequence classification model with ``num_labels=1``, with Gaussian noise.

    ``tune_prior("evidence")`` chooses the noise variance with the prior precision. Predictions are ``mean`` (B, 1)
    and ``covariance`` (B, 1, 1) of the output, without the noise.
    """

    name = "scalar"
    likelihood = "gaussian"
    full_covariance = True
    reads_head = True
    tunes_noise = True

    def check_model(self, model: nn.Module) -> None:
        """See :meth:`Readout.check_model`."""
        check_one_output(type(self).__name__, model)

    def rows(self, batch: Mapping[str, Tensor], labels: Tensor | None) -> ModelRows:
        """See :meth:`Readout.rows`."""
        return plain_rows(batch)

    def read(self, model: nn.Module, rows: ModelRows, draw: Draw | None = None) -> Reading:
        """See :meth:`Readout.read`: (B, 1) outputs."""
        return Reading(sequence_logits(self, model, rows))


def has_one_output(model: nn.Module) -> bool:
    """Say whether a sequence classification model has one output.

    Args:
        model: The PEFT model.

    Returns:
        Whether it has.
    """
    return getattr(model_config(model), "num_labels", None) == 1


def check_one_output(name: str, model: nn.Module) -> None:
    """Refuse a model with another number of outputs than one.

    Args:
        name: The readout, for messages.
        model: The PEFT model.

    Raises:
        UnsupportedInputError: It has none, or several.
    """
    if not has_one_output(model):
        outputs = getattr(model_config(model), "num_labels", None)
        raise UnsupportedInputError(
            f"{name} reads a sequence classification model with one output, and this one has {outputs}; load it with "
            "num_labels=1, or use ClassLogits()."
        )
