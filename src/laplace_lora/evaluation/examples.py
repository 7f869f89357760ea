"""Which examples a reader should look at: the most uncertain, and the most confidently wrong."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.metrics import FloatArray, IntArray, check_labels, check_probabilities, entropies
from laplace_lora.evaluation.outputs import ProbabilitiesLike


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What methods say about the same examples, and what is known of the truth. Whatever is given becomes arrays.

    Attributes:
        labels: (N,) class numbers.
        methods: (N, K) probabilities of each method, by name.
        label_names: K names.
        texts: N texts to show; None where there are none.
        truth: (N, K) the probabilities that the labels were drawn from; None where unknown.
        epistemic: (N,) mutual information of the judged method in nats; None where unknown.
    """

    labels: IntArray
    methods: Mapping[str, ProbabilitiesLike]
    label_names: Sequence[str]
    texts: Sequence[str] | None = None
    truth: ProbabilitiesLike | None = None
    epistemic: FloatArray | None = None

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together.

        Raises:
            LaplaceLoRAError: Shapes differ, or rows are no probabilities.
        """
        if not self.methods:
            raise LaplaceLoRAError("there are no predictions; give the probabilities of at least one method.")
        arrays = {name: check_probabilities(values, name) for name, values in self.methods.items()}
        first = next(iter(arrays))
        shape = arrays[first].shape
        truth = {} if self.truth is None else {"truth": check_probabilities(self.truth, "truth")}
        for name, array in {**arrays, **truth}.items():
            if array.shape != shape:
                raise LaplaceLoRAError(
                    f"{name} and {first} differ in shape; give predictions for the same examples and classes."
                )
        epistemic = None if self.epistemic is None else np.asarray(self.epistemic, dtype=np.float64)
        for field, values, length in (
            ("label_names", self.label_names, shape[1]),
            ("texts", self.texts, shape[0]),
            ("epistemic", epistemic, shape[0]),
        ):
            if values is not None and len(values) != length:
                raise LaplaceLoRAError(f"{field} has {len(values)} entries; give {length}.")
        object.__setattr__(self, "labels", check_labels(self.labels, *shape))
        object.__setattr__(self, "methods", arrays)
        object.__setattr__(self, "truth", truth.get("truth"))
        object.__setattr__(self, "epistemic", epistemic)

    def probabilities(self, method: str) -> FloatArray:
        """Return what one method says.

        Args:
            method: Its name.

        Returns:
            (N, K) probabilities, float64.

        Raises:
            LaplaceLoRAError: There is no such method.
        """
        if method not in self.methods:
            raise LaplaceLoRAError(
                f"there are no predictions of {method!r}; give them beside those of {', '.join(self.methods)}."
            )
        values = self.methods[method]
        assert isinstance(values, np.ndarray)  # made so above
        return values


@dataclasses.dataclass(frozen=True)
class Shown:
    """One example as a reader sees it.

    Attributes:
        text: The example.
        label: Name of its label.
        predicted: Name of the class that the method in question finds most probable; all probabilities are of this
            class.
        probabilities: Its probability under each method.
        truth: Its true probability, where it is known.
        epistemic: Mutual information in nats, where it is known.
    """

    text: str
    label: str
    predicted: str
    probabilities: dict[str, float]
    truth: float | None
    epistemic: float | None


def most_uncertain(predictions: Predictions, method: str, count: int) -> list[Shown]:
    """Pick the examples on which a method is least sure.

    Args:
        predictions: The predictions. With ``epistemic`` that decides (more training data would help most there);
            without it, the entropy of the method's probabilities.
        method: Name of the method.
        count: How many.

    Returns:
        The examples, most uncertain first.
    """
    values = predictions.probabilities(method)
    uncertainty = entropies(values) if predictions.epistemic is None else predictions.epistemic
    order = np.argsort(-uncertainty, kind="stable")
    return [_shown(predictions, int(i), int(values[i].argmax())) for i in order[:count]]


def confidently_wrong(predictions: Predictions, method: str, count: int) -> list[Shown]:
    """Pick the wrong predictions of one method in which it was most confident.

    Args:
        predictions: The predictions.
        method: Name of the method.
        count: How many.

    Returns:
        The examples, most confident first; fewer where fewer are wrong.
    """
    values = predictions.probabilities(method)
    chosen = values.argmax(axis=1)
    order = np.argsort(-values.max(axis=1), kind="stable")
    wrong = order[chosen[order] != predictions.labels[order]]
    return [_shown(predictions, int(i), int(chosen[i])) for i in wrong[:count]]


def _shown(predictions: Predictions, i: int, predicted: int) -> Shown:
    """Collect what is known of example ``i`` and of one class."""
    return Shown(
        text=predictions.texts[i] if predictions.texts is not None else f"example {i}",
        label=predictions.label_names[int(predictions.labels[i])],
        predicted=predictions.label_names[predicted],
        probabilities={name: float(predictions.probabilities(name)[i, predicted]) for name in predictions.methods},
        truth=None if predictions.truth is None else float(np.asarray(predictions.truth)[i, predicted]),
        epistemic=None if predictions.epistemic is None else float(predictions.epistemic[i]),
    )
