"""What an adapter and its posterior give for classes, typed by what it holds: the one place where a method is made."""

import numpy as np

from laplace_lora.data import DataFile
from laplace_lora.evaluation import Logits, Outputs, Probabilities
from laplace_lora.evaluation.metrics import IntArray
from laplace_lora.predictive import Predictive


def methods_of(predictive: Predictive, temperature: float | None) -> dict[str, Probabilities]:
    """Return the probabilities of every method.

    Args:
        predictive: All examples.
        temperature: Of temperature scaling; None without it.

    Returns:
        ``map``, ``temperature`` if there is one, and ``laplace``.
    """
    methods = {"map": Probabilities(predictive.map_probabilities.numpy())}
    if temperature is not None:
        methods["temperature"] = Logits(predictive.mean.numpy()).softmax(temperature)
    return {**methods, "laplace": Probabilities(predictive.probabilities.numpy())}


def outputs_of(predictive: Predictive, methods: dict[str, Probabilities], labels: IntArray | None) -> Outputs:
    """Return what is written to outputs.safetensors.

    Args:
        predictive: All examples of a data set.
        methods: Their probabilities.
        labels: Their class numbers; None where there are none.

    Returns:
        The trained adapter's logits, all probabilities, the posterior's mutual information, and the labels.
    """
    information = predictive.mutual_information.double().numpy()
    return Outputs(methods, {"map": Logits(predictive.mean.numpy())}, {"laplace": information}, labels)


def labels_of(file: DataFile) -> IntArray:
    """Read the labels of a data set.

    Args:
        file: Labelled rows, or pairs.

    Returns:
        (N,) class numbers; of pairs 0, since the first text is the preferred one.
    """
    return np.array([int(example.label or 0) for example in file], dtype=np.int64)


def as_wide(
    inside: dict[str, Probabilities], outside: dict[str, Probabilities]
) -> tuple[dict[str, Probabilities], dict[str, Probabilities]]:
    """Give two data sets the same number of options: those that are absent have probability 0.

    Args:
        inside: Methods on one.
        outside: The same methods on the other.

    Returns:
        Both.
    """
    widest = max(methods["map"].values.shape[1] for methods in (inside, outside))

    def widened(methods: dict[str, Probabilities]) -> dict[str, Probabilities]:
        return {name: probabilities.widened(widest) for name, probabilities in methods.items()}

    return widened(inside), widened(outside)
