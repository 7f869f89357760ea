"""What every readout is: how a batch reaches the model, and which of its outputs are the answer."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from laplace_lora.readouts.rows import Draw, ModelRows, Reading

#: ``categorical``: a softmax over K logits. ``gaussian``: real outputs with noise. ``tokens``: the readout's outputs
#: are log-probabilities of whole texts. ``configured``: as ``LaplaceConfig.likelihood`` says.
LikelihoodKind = Literal["categorical", "gaussian", "tokens", "configured"]


class Readout(abc.ABC):
    """How a model's outputs become K logits.

    Attributes:
        name: What it is saved as.
        likelihood: What its outputs are to a likelihood.
        separate: Whether every output depends on an input row of its own, so that one backward pass serves all.
        full_covariance: Whether the covariance of the outputs themselves is asked for, not of centred logits.
        reads_head: Whether the outputs are those of a classification head at one position.
        tunes_noise: Whether the evidence chooses the noise variance too.
    """

    name: ClassVar[str]
    likelihood: ClassVar[LikelihoodKind] = "categorical"
    separate: ClassVar[bool] = False
    full_covariance: ClassVar[bool] = False
    reads_head: ClassVar[bool] = False
    tunes_noise: ClassVar[bool] = False

    @abc.abstractmethod
    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that this readout cannot read.

        Args:
            model: The PEFT model.
        """

    @abc.abstractmethod
    def rows(self, batch: Mapping[str, Tensor], labels: Tensor | None) -> ModelRows:
        """Lay a batch out as the model is to see it.

        Args:
            batch: Model inputs.
            labels: The batch's labels, or None.

        Returns:
            The rows.
        """

    @abc.abstractmethod
    def read(self, model: nn.Module, rows: ModelRows, draw: Draw | None = None) -> Reading:
        """Run one forward pass.

        Args:
            model: The PEFT model.
            rows: The batch.
            draw: Random numbers of the examples; with them, a readout that is a likelihood of its own samples labels.

        Returns:
            Its outputs, in the model's dtype.
        """

    def labels(self, rows: ModelRows, labels: Tensor | None) -> Tensor | None:
        """Return what the likelihood takes as labels.

        Args:
            rows: The batch.
            labels: What came with it.

        Returns:
            The labels, or None if there are none.
        """
        return labels

    @property
    def head_rows(self) -> Tensor | None:
        """Rows of the output embeddings that outputs depend on; None for all."""
        return None

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON values."""
        return {}

    def __repr__(self) -> str:
        """Show the readout as it is made."""
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.settings().items())})"


def real_tokens(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Read which positions of a batch are real tokens.

    Args:
        batch: Model inputs.

    Returns:
        (B, T) True at real tokens, or None if there is no padding.
    """
    mask = batch.get("attention_mask")
    return None if mask is None or bool(mask.all()) else mask.bool()


def plain_rows(batch: Mapping[str, Tensor]) -> ModelRows:
    """Lay out a batch whose examples are rows.

    Args:
        batch: Model inputs.

    Returns:
        The rows.
    """
    return ModelRows(dict(batch), next(iter(batch.values())).shape[0], real_tokens(batch))
