"""Examples in order of falling confidence, those of equal confidence kept together as one group.

Whatever is computed from groups cannot depend on the order of the rows in a file. A resample of the data is described
by how often each example occurs in it, so one sort serves all resamples.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from laplace_lora.evaluation.metrics import FloatArray, IntArray, check_probabilities, correct
from laplace_lora.evaluation.outputs import ProbabilitiesLike


class Ranking(NamedTuple):
    """The order of N examples that fall into G groups of equal confidence.

    Attributes:
        order: (N,) row numbers by falling confidence.
        starts: (G,) position in ``order`` at which each group begins.
        confidence: (G,) confidence of each group, falling.
        wrong: (N,) 1.0 for a wrong prediction, 0.0 for a right one, in the order of ``order``; or (R, N), one row for
            each of R sets of outcomes.
    """

    order: IntArray
    starts: IntArray
    confidence: FloatArray
    wrong: FloatArray


class Groups(NamedTuple):
    """What falls into each group, in R data sets at once.

    Attributes:
        confidence: (G,) confidence of each group, falling.
        examples: (R, G) examples in each group; zeros where a resample holds none of them.
        wrong: (R, G) wrong predictions among these.
        examples_so_far: (R, G) examples in this group and all before it.
        wrong_so_far: (R, G) wrong predictions in this group and all before it.
    """

    confidence: FloatArray
    examples: FloatArray
    wrong: FloatArray
    examples_so_far: FloatArray
    wrong_so_far: FloatArray


def rank(probabilities: ProbabilitiesLike, labels: ArrayLike) -> Ranking:
    """Sort examples by their largest probability.

    Args:
        probabilities: (N, K) probabilities.
        labels: (N,) class numbers.

    Returns:
        The ranking.
    """
    values = check_probabilities(probabilities)
    wrong = 1.0 - correct(values, labels)
    confidence = values.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    starts = np.flatnonzero(np.concatenate([[True], falling[1:] != falling[:-1]]))
    return Ranking(order, starts, falling[starts], wrong[order])


def groups(ranking: Ranking, counts: FloatArray | None = None) -> Groups:
    """Count examples and errors of each group.

    Args:
        ranking: The order.
        counts: (R, N) how often each row occurs in each of R resamples; None for the data themselves (R = 1).

    Returns:
        The counts of each group.
    """
    examples = np.ones((1, len(ranking.order))) if counts is None else counts[:, ranking.order]
    wrong = examples * ranking.wrong
    examples = np.broadcast_to(examples, wrong.shape)  # where R sets of outcomes of the same examples are given
    if len(ranking.starts) < len(ranking.order):
        examples = np.add.reduceat(examples, ranking.starts, axis=1)
        wrong = np.add.reduceat(wrong, ranking.starts, axis=1)
    return Groups(ranking.confidence, examples, wrong, examples.cumsum(axis=1), wrong.cumsum(axis=1))
