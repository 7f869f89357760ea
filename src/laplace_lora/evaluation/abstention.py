"""When to answer: a confidence above which a model errs rarely enough, with a finite-sample bound.

Candidate thresholds are confidences at ranks that are fixed before any label is seen: the k-th largest of N, for ten
values of k. Given that one, the examples above it are independent draws of all that are above it, and their errors are
binomial: the exact (Clopper and Pearson 1934) upper bound at level 1 - failure / 10 holds for each, so that all ten
hold together with probability 1 - failure, and whichever is chosen (as in selective classification with guaranteed
risk: Geifman and El-Yaniv, NeurIPS 2017). New examples have to come from where these come from.
"""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.metrics import correct
from laplace_lora.evaluation.outputs import Probabilities

#: Coverages that are tried: 10 %, 20 % ... 100 %. Each more would cost all of them some of their certainty.
CANDIDATES = 10
#: How often the bound may fail.
FAILURE = 0.05


@dataclasses.dataclass(frozen=True)
class Abstention:
    """A rule: answer where the confidence is above the threshold.

    Attributes:
        target_risk: Share of wrong answers, among those given, that is allowed.
        threshold: Confidence above which to answer; None where no threshold keeps the risk.
        coverage: Share of the examples here that are answered.
        risk: Share of wrong answers among them; 0 where none is given.
        bound: What the risk on new examples is at most, with probability ``1 - failure``: of the threshold, or
            the least one of all candidates where none keeps the risk.
        failure: How often, over samples like this one, the bound may fail.
        examples: Number of examples.
    """

    target_risk: float
    threshold: float | None
    coverage: float
    risk: float
    bound: float
    failure: float
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return dataclasses.asdict(self)

    @property
    def least_answers(self) -> int:
        """How many answers, all of them right, it takes for a bound no larger than the target."""
        return math.ceil(math.log(self.failure / CANDIDATES) / math.log1p(-self.target_risk))

    @property
    def text(self) -> str:
        """Say it in a line."""
        sure = f"with {100 * (1 - self.failure):.0f} % confidence"
        if self.threshold is None:
            return (
                f"No threshold of the confidence keeps the error of the answers below {100 * self.target_risk:g} % "
                f"({sure}): the best bound on these {self.examples} rows is {100 * self.bound:.1f} %."
            )
        return (
            f"Answer above confidence {self.threshold:.6g}: {100 * self.coverage:.1f} % of these rows are answered, "
            f"{100 * self.risk:.1f} % of the answers are wrong, and {sure} at most {100 * self.bound:.1f} % of new "
            "ones."
        )


def upper_bound(errors: int, count: int, failure: float) -> float:
    """Bound a binomial's probability from above.

    Args:
        errors: Successes seen.
        count: Trials.
        failure: How often the bound may fail.

    Returns:
        The exact (Clopper-Pearson) one-sided bound; 1 where every trial succeeded, or there was none.
    """
    return 1.0 if errors >= count else float(scipy.stats.beta.ppf(1.0 - failure, errors + 1, count - errors))


def choose_threshold(
    probabilities: Probabilities, labels: ArrayLike, target_risk: float, failure: float = FAILURE
) -> Abstention:
    """Choose the threshold that answers most, of those whose bound is no larger than the target.

    Args:
        probabilities: (N, K) of examples that nothing was trained or tuned on.
        labels: (N,) class numbers.
        target_risk: Share of wrong answers that is allowed, above 0 and below 1.
        failure: How often, over samples, the bound may fail.

    Returns:
        The rule.

    Raises:
        LaplaceLoRAError: The target is no share.
    """
    if not 0.0 < target_risk < 1.0:
        raise LaplaceLoRAError(f"the target risk is {target_risk:g}; give a share of wrong answers between 0 and 1.")
    confidence = probabilities.values.max(axis=1)
    wrong = 1.0 - correct(probabilities, labels)
    descending = np.sort(confidence)[::-1]
    total = len(descending)
    best: Abstention | None = None
    least = 1.0
    for step in range(1, CANDIDATES + 1):
        rank = math.ceil(step * total / CANDIDATES)
        # The last candidate answers everything.
        threshold = 0.0 if step == CANDIDATES else float(descending[rank - 1])
        answered = confidence > threshold
        count, errors = int(answered.sum()), round(float(wrong[answered].sum()))
        bound = upper_bound(errors, count, failure / CANDIDATES)
        least = min(least, bound)
        if bound <= target_risk:
            best = Abstention(target_risk, threshold, count / total, errors / count, bound, failure, total)
    return best or Abstention(target_risk, None, 0.0, 0.0, least, failure, total)
