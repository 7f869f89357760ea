"""Temperature scaling against SciPy's minimiser, and its limits."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from laplace_lora import LaplaceLoRAError
from laplace_lora.methods import fit_temperature
from laplace_lora.methods.temperature import COLDEST, HOTTEST


@pytest.mark.parametrize("classes", [2, 3, 50])
@pytest.mark.parametrize("true", [0.5, 1.0, 4.0])
def test_against_a_minimiser(classes: int, true: float) -> None:
    generator = np.random.default_rng(classes)
    logits = 3.0 * generator.standard_normal((300, classes))
    labels = (logits / true + generator.gumbel(size=logits.shape)).argmax(axis=1)

    def loss(log_t: float) -> float:
        return float(-log_softmax(logits / np.exp(log_t), axis=1)[np.arange(300), labels].mean())

    best = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-12})
    found = fit_temperature(logits, labels)
    assert loss(np.log(found)) <= best.fun + 1e-12
    assert found == pytest.approx(np.exp(best.x), rel=1e-5)
    # The shift of a row and the scale of all logits do not matter, but for T itself.
    shifted = logits + generator.standard_normal((300, 1))
    assert fit_temperature(shifted, labels) == pytest.approx(found, rel=1e-9)
    assert fit_temperature(2.0 * logits, labels) == pytest.approx(2.0 * found, rel=1e-9)


def test_where_there_is_no_minimum() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, np.array([0, 1])) == COLDEST
    assert fit_temperature(logits, np.array([1, 0])) == HOTTEST


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[4e4, 0.0], [4e4, 0.0], [0.0, 4e4]])
    assert fit_temperature(logits, np.array([0, 1, 1])) == HOTTEST


@pytest.mark.parametrize(("logits", "labels"), [
    (np.zeros((0, 2)), np.zeros(0, int)), (np.zeros((3, 2)), np.zeros(2, int)),
    (np.full((1, 2), np.nan), np.zeros(1, int)),
])  # fmt: skip
def test_refusals(logits: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(LaplaceLoRAError, match=r"give one row of logits and one class index per example\.$"):
        fit_temperature(logits, labels)
