"""Temperature scaling against SciPy's minimiser, and its limits."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from laplace_lora import LaplaceLoRAError
from laplace_lora.evaluation import Logits
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
    found = fit_temperature(Logits(logits), labels)
    assert loss(np.log(found)) <= best.fun + 1e-12
    assert found == pytest.approx(np.exp(best.x), rel=1e-5)
    # The shift of a row and the scale of all logits do not matter, but for T itself.
    shifted = logits + generator.standard_normal((300, 1))
    assert fit_temperature(Logits(shifted), labels) == pytest.approx(found, rel=1e-9)
    assert fit_temperature(Logits(2.0 * logits), labels) == pytest.approx(2.0 * found, rel=1e-9)


def test_where_there_is_no_minimum() -> None:
    logits = Logits(np.array([[2.0, 0.0], [0.0, 1.0]]))
    assert fit_temperature(logits, np.array([0, 1])) == COLDEST
    assert fit_temperature(logits, np.array([1, 0])) == HOTTEST


def test_large_logits_do_not_overflow() -> None:
    logits = Logits(np.array([[4e4, 0.0], [4e4, 0.0], [0.0, 4e4]]))
    assert fit_temperature(logits, np.array([0, 1, 1])) == HOTTEST


def test_absent_options_take_no_part() -> None:
    generator = np.random.default_rng(3)
    logits, labels = 3.0 * generator.standard_normal((200, 3)), generator.integers(0, 3, 200)
    wide = np.concatenate([logits, np.full((200, 2), -np.inf)], axis=1)
    assert fit_temperature(Logits(wide), labels) == pytest.approx(fit_temperature(Logits(logits), labels), rel=1e-12)
    with pytest.raises(LaplaceLoRAError, match=r"lacks .* mend the labels\.$"):
        fit_temperature(Logits(wide), np.full(200, 4))


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1], "give one label for each of the 3 rows"), ([0, 1, 2], r"lie in 0 \.\. 1"), ([0.0, 1.0, 1.0], "integers")],
)
def test_refusals(labels: list[int], message: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=message):
        fit_temperature(Logits(np.zeros((3, 2))), labels)
