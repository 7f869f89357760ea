"""Sets of classes hold the right one as often as they say: simulation over many draws, and plain loops."""

import math

import numpy as np
import pytest

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.conformal import choose_sets, prediction_sets
from laplace_lora.evaluation.outputs import Probabilities

CLASSES, EXAMPLES, DRAWS = 5, 99, 3000


def _draw(generator: np.random.Generator, count: int, honest: bool) -> tuple[Probabilities, np.ndarray]:
    logits = 2.0 * generator.normal(size=(count, CLASSES))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    truth = p if honest else np.roll(p, 1, axis=1)
    labels = (truth.cumsum(axis=1) < generator.uniform(size=(count, 1))).sum(axis=1)
    return Probabilities(p), np.minimum(labels, CLASSES - 1)


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_coverage_over_many_draws(coverage: float, honest: bool) -> None:
    """At least as stated, and no more than 1 / (n + 1) above, scores being continuous, but for empty sets."""
    generator = np.random.default_rng(0)
    held = bare = 0
    for _ in range(DRAWS):
        rule = choose_sets(*_draw(generator, EXAMPLES, honest), coverage)
        probabilities, labels = _draw(generator, 1, honest)
        held += bool(prediction_sets(probabilities.values, rule.least_probability)[0, labels[0]])
        bare += bool(probabilities.values[0, labels[0]] >= rule.least_probability)
    error = 3.0 * math.sqrt(coverage * (1.0 - coverage) / DRAWS)
    assert held / DRAWS >= coverage - error
    assert coverage - error <= bare / DRAWS <= coverage + 1.0 / (EXAMPLES + 1) + error


@pytest.mark.parametrize(("count", "coverage", "rank"), [(9, 0.9, 9), (19, 0.9, 18), (99, 0.9, 90), (10, 0.5, 6)])
def test_the_threshold_is_the_score_at_its_rank(count: int, coverage: float, rank: int) -> None:
    """ceil((n + 1) coverage), counted from the likeliest label."""
    probabilities, labels = _draw(np.random.default_rng(1), count, True)
    scores = sorted((probabilities.values[i, labels[i]] for i in range(count)), reverse=True)
    assert choose_sets(probabilities, labels, coverage).least_probability == scores[rank - 1]


def test_too_few_examples_name_all_classes_that_are_there() -> None:
    rule = choose_sets(Probabilities(np.array([[0.2, 0.8]])), [1], 0.9)
    assert rule.least_probability == 0.0
    assert rule.mean_size == 2.0
    assert prediction_sets(np.array([[0.7, 0.3, 0.0]]), 0.0).tolist() == [[True, True, False]]


@pytest.mark.parametrize("coverage", [0.1, 0.3, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_as_many_examples_as_are_said_are_enough(coverage: float) -> None:
    one = Probabilities(np.array([[0.2, 0.8]]))
    least = choose_sets(one, [1], coverage).least_examples
    for count in range(1, least + 2):
        many = Probabilities(np.tile(one.values, (count, 1)))
        assert (choose_sets(many, [1] * count, coverage).least_probability > 0.0) == (count >= least)


def test_no_set_is_empty() -> None:
    p = np.array([[0.4, 0.35, 0.25], [0.9, 0.06, 0.04]])
    assert prediction_sets(p, 0.95).tolist() == [[True, False, False], [True, False, False]]
    assert prediction_sets(p, 0.3).tolist() == [[True, True, False], [True, False, False]]


@pytest.mark.parametrize("coverage", [0.0, 1.0, 1.5, math.nan])
def test_a_coverage_that_is_no_share_is_refused(coverage: float) -> None:
    with pytest.raises(LaplaceLoRAError, match="give a probability between 0 and 1"):
        choose_sets(Probabilities(np.array([[0.2, 0.8]])), [1], coverage)
