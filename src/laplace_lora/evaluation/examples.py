"""Which examples a reader should look at: the most uncertain, and the most confidently wrong."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.metrics import FloatArray, IntArray, check_labels, check_probabilities


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What two methods say about the same examples, and what is known of the truth.

    Attributes:
        labels: (N,) class numbers.
        before: (N, K) MAP's probabilities.
        after: (N, K) Laplace's probabilities.
        label_names: K names.
        texts: N texts to show; None where there are none.
        truth: (N, K) the probabilities that the labels were drawn from; None where unknown.
        epistemic: (N,) mutual information in nats; None where unknown.
    """

    labels: IntArray
    before: FloatArray
    after: FloatArray
    label_names: Sequence[str]
    texts: Sequence[str] | None = None
    truth: FloatArray | None = None
    epistemic: FloatArray | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together.

        Raises:
            LaplaceLoRAError: Shapes differ, or rows are no probabilities.
        """
        shape = check_probabilities(self.after).shape
        check_labels(self.labels, *shape)
        for name in ("before", "truth"):
            array = getattr(self, name)
            if array is not None and check_probabilities(array, name).shape != shape:
                raise LaplaceLoRAError(f"{name} and after differ in shape; give predictions for the same examples.")
        for name, length in (("label_names", shape[1]), ("texts", shape[0]), ("epistemic", shape[0])):
            values = getattr(self, name)
            if values is not None and len(values) != length:
                raise LaplaceLoRAError(f"{name} has {len(values)} entries; give {length}.")


@dataclasses.dataclass(frozen=True)
class Shown:
    """One example as a reader sees it.

    Attributes:
        text: The example.
        label: Name of its label.
        predicted: Name of the class that Laplace finds most probable; all probabilities below are of this class.
        before: Probability under MAP.
        after: Probability under Laplace.
        truth: True probability, where it is known.
        epistemic: Mutual information in nats, where it is known.
    """

    text: str
    label: str
    predicted: str
    before: float
    after: float
    truth: float | None
    epistemic: float | None


def most_uncertain(predictions: Predictions, count: int) -> list[Shown]:
    """Pick the examples on which more training data would help most.

    Args:
        predictions: The predictions; without ``epistemic``, the entropy of Laplace's probabilities decides.
        count: How many.

    Returns:
        The examples, most uncertain first.
    """
    if predictions.epistemic is not None:
        order = np.argsort(-np.asarray(predictions.epistemic), kind="stable")
    else:
        order = np.argsort(predictions.after.max(axis=1), kind="stable")
    return [_shown(predictions, int(i)) for i in order[:count]]


def confidently_wrong(predictions: Predictions, probabilities: ArrayLike, count: int) -> list[Shown]:
    """Pick the wrong predictions of one method in which it was most confident.

    Args:
        predictions: The predictions.
        probabilities: (N, K) ``predictions.before`` or ``predictions.after``.
        count: How many.

    Returns:
        The examples, most confident first; fewer where fewer are wrong.
    """
    values = check_probabilities(probabilities)
    order = np.argsort(-values.max(axis=1), kind="stable")
    wrong = values.argmax(axis=1) != predictions.labels
    return [_shown(predictions, int(i)) for i in order if wrong[i]][:count]


def _shown(predictions: Predictions, i: int) -> Shown:
    """Collect what is known of example ``i``."""
    predicted = int(predictions.after[i].argmax())
    return Shown(
        text=predictions.texts[i] if predictions.texts is not None else f"example {i}",
        label=predictions.label_names[int(predictions.labels[i])],
        predicted=predictions.label_names[predicted],
        before=float(predictions.before[i, predicted]),
        after=float(predictions.after[i, predicted]),
        truth=None if predictions.truth is None else float(predictions.truth[i, predicted]),
        epistemic=None if predictions.epistemic is None else float(predictions.epistemic[i]),
    )
