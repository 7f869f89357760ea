"""Sets of classes that hold the right one with a stated probability (split conformal prediction).

A set holds the classes whose probability is at least 1 - q, q the ceil((n + 1) coverage)-th smallest of the scores
1 - p_y of n labelled examples (Sadinle, Lei and Wasserman, JASA 2019; Angelopoulos and Bates 2021, section 1). For
examples that are exchangeable with these the right class is in the set with at least that probability, whatever the
probabilities are worth; it holds on average over examples, not for each.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.outputs import FloatArray, Probabilities


@dataclasses.dataclass(frozen=True)
class PredictionSets:
    """A rule: take all classes of at least some probability, and the likeliest in any case.

    Attributes:
        coverage: Probability, at least, with which a set holds the right class.
        least_probability: Of a class in a set; 0 where there are too few examples for anything but all classes.
        mean_size: Classes per set, on the examples here.
        examples: Number of examples.
    """

    coverage: float
    least_probability: float
    mean_size: float
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return dataclasses.asdict(self)

    @property
    def least_examples(self) -> int:
        """How many examples it takes for sets of anything but all classes: n with ceil((n + 1) coverage) <= n."""
        return math.ceil(self.coverage / (1.0 - self.coverage) - 1e-6)

    @property
    def text(self) -> str:
        """Say it in a line."""
        return (
            f"Sets of the classes of probability {self.least_probability:.6g} and more hold the right one with "
            f"{100 * self.coverage:g} % probability: {self.mean_size:.2f} classes on average over these rows."
        )


def prediction_sets(probabilities: FloatArray, least_probability: float) -> FloatArray:
    """Make sets.

    Args:
        probabilities: (N, K); 0 for options that an example does not have.
        least_probability: Of a class in a set.

    Returns:
        (N, K) whether a class is in the set: never none, and never an option that is not there.
    """
    likeliest = np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]
    return ((probabilities >= least_probability) & (probabilities > 0.0)) | likeliest


def choose_sets(probabilities: Probabilities, labels: ArrayLike, coverage: float) -> PredictionSets:
    """Choose the rule for a coverage.

    Args:
        probabilities: (N, K) of examples that nothing was trained or tuned on.
        labels: (N,) class numbers.
        coverage: Probability with which sets are to hold the right class, above 0 and below 1.

    Returns:
        The rule.

    Raises:
        LaplaceLoRAError: The coverage is no share.
    """
    if not 0.0 < coverage < 1.0:
        raise LaplaceLoRAError(f"the coverage is {coverage:g}; give a probability between 0 and 1.")
    values = probabilities.values
    of_labels = np.sort(values[np.arange(len(values)), np.asarray(labels, dtype=np.int64)])[::-1]
    rank = math.ceil((len(values) + 1) * coverage - 1e-9)  # 10 x 0.9 is 9.000000000000002 in some orders
    least = float(of_labels[rank - 1]) if rank <= len(values) else 0.0
    sizes = prediction_sets(values, least).sum(axis=1)
    return PredictionSets(coverage, least, float(sizes.mean()), len(values))
