"""Thresholds of the confidence and their bounds, by simulation over many draws and against SciPy."""

import math

import numpy as np
import pytest
import scipy.stats

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.abstention import CANDIDATES, FAILURE, choose_threshold, upper_bound
from laplace_lora.evaluation.outputs import Probabilities

DRAWS, EXAMPLES = 2000, 300


@pytest.mark.parametrize(("errors", "count"), [(0, 1), (0, 50), (3, 50), (49, 50), (50, 50), (7, 1000)])
def test_bound_is_scipys_exact_one(errors: int, count: int) -> None:
    expected = scipy.stats.binomtest(errors, count, alternative="less").proportion_ci(0.95, method="exact").high
    assert math.isclose(upper_bound(errors, count, 0.05), expected, rel_tol=1e-10)


def test_without_answers_nothing_is_known() -> None:
    assert upper_bound(0, 0, 0.05) == 1.0


def _draw(generator: np.random.Generator, confidences: int | None, wrong: str) -> tuple[Probabilities, np.ndarray]:
    confidence = generator.uniform(0.5, 1.0, EXAMPLES)
    if confidences is not None:  # many ties
        confidence = np.round(confidence * confidences) / confidences
    risk = {"calibrated": 1.0 - confidence, "flat": np.full(EXAMPLES, 0.101), "useless": 0.3 * confidence}[wrong]
    labels = (generator.uniform(size=EXAMPLES) < risk).astype(np.int64)
    return Probabilities(np.stack([confidence, 1.0 - confidence], axis=1)), labels


def _true_risk(threshold: float, wrong: str) -> float:
    """Return the mean risk above a threshold, the confidence uniform from one half to one."""
    middle = 0.5 * (max(threshold, 0.5) + 1.0)
    return {"calibrated": 1.0 - middle, "flat": 0.101, "useless": 0.3 * middle}[wrong]


@pytest.mark.parametrize("wrong", ["calibrated", "flat", "useless"])
def test_the_bound_fails_no_more_often_than_it_says(wrong: str) -> None:
    """``flat`` errs just above the target everywhere, so that every threshold that is given is one too many."""
    generator = np.random.default_rng(0)
    failures = 0
    for _ in range(DRAWS):
        found = choose_threshold(*_draw(generator, None, wrong), target_risk=0.1)
        if found.threshold is not None:
            assert found.bound <= 0.1
            failures += _true_risk(found.threshold, wrong) > found.bound
    assert failures / DRAWS <= FAILURE + 3.0 * math.sqrt(FAILURE / DRAWS)


def test_a_calibrated_model_is_let_answer() -> None:
    """What keeps the risk of a fifth in truth: the upper 80 % of the confidences."""
    generator = np.random.default_rng(1)
    found = [choose_threshold(*_draw(generator, None, "calibrated"), target_risk=0.2) for _ in range(200)]
    assert np.mean([one.threshold is not None for one in found]) > 0.85
    assert 0.3 < np.mean([one.coverage for one in found]) < 0.8


@pytest.mark.parametrize("target", [0.02, 0.1, 0.3, 0.6])
def test_the_rule_is_the_widest_of_all_candidates(target: float) -> None:
    """Over ranks by plain loops; ties stay on one side of a threshold."""
    generator = np.random.default_rng(2)
    for _ in range(50):
        probabilities, labels = _draw(generator, 20, "calibrated")
        confidence = probabilities.values.max(axis=1)
        best = None
        for step in range(1, CANDIDATES + 1):
            rank = math.ceil(step * EXAMPLES / CANDIDATES)
            threshold = 0.0 if step == CANDIDATES else sorted(confidence, reverse=True)[rank - 1]
            rows = [i for i in range(EXAMPLES) if confidence[i] > threshold]
            errors = sum(probabilities.values[i].argmax() != labels[i] for i in rows)
            if rows and upper_bound(errors, len(rows), FAILURE / CANDIDATES) <= target:
                best = (threshold, len(rows) / EXAMPLES, errors / len(rows))
        found = choose_threshold(probabilities, labels, target)
        assert (found.threshold, found.coverage, found.risk) == (best or (None, 0.0, 0.0))


def test_where_nothing_keeps_the_risk() -> None:
    labels = np.ones(100, dtype=np.int64)
    found = choose_threshold(Probabilities(np.full((100, 2), 0.5)), labels, 0.05)
    assert found.threshold is None
    assert found.coverage == 0.0
    assert found.bound == 1.0
    assert found.text.startswith("No threshold of the confidence keeps the error of the answers below 5 % (with 95 %")


@pytest.mark.parametrize("target", [0.01, 0.05, 0.5, 0.9])
def test_as_many_answers_as_are_said_can_keep_the_risk(target: float) -> None:
    least = choose_threshold(Probabilities(np.array([[0.5, 0.5]])), [1], target).least_answers
    assert upper_bound(0, least, 0.005) <= target
    assert least == 1 or upper_bound(0, least - 1, 0.005) > target


def test_what_is_said() -> None:
    generator = np.random.default_rng(3)
    found = choose_threshold(*_draw(generator, None, "calibrated"), target_risk=0.2)
    assert f"Answer above confidence {found.threshold:.6g}: {100 * found.coverage:.1f} % of these rows" in found.text
    assert f"with 95 % confidence at most {100 * found.bound:.1f} % of new ones." in found.text
    assert set(found.to_dict()) == {"target_risk", "threshold", "coverage", "risk", "bound", "failure", "examples"}


@pytest.mark.parametrize("target", [0.0, 1.0, -0.1, math.nan])
def test_a_target_that_is_no_share_is_refused(target: float) -> None:
    with pytest.raises(LaplaceLoRAError, match="give a share of wrong answers between 0 and 1"):
        choose_threshold(Probabilities(np.full((3, 2), 0.5)), [0, 1, 0], target)
