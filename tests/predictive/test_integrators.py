"""All rules by name: against a reference that shares nothing with them, against formulas, and in their invariances."""

import functools
import importlib.util
import itertools
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError, Predictive
from laplace_lora.config import PredictiveRule
from laplace_lora.predictive import INTEGRATORS, expected_softmax, laplace_bridge, monte_carlo, of_options
from laplace_lora.tuning import mean_predictive
from tiny_models import batches, random_examples, tiny_bert

RULES = get_args(PredictiveRule)
POINTS = 4096
CELLS = [(classes, sd, rank) for classes in (2, 3, 4, 5, 8) for sd in (0.3, 3.0, 30.0) for rank in ("full", "half")]
# What docs and docstring promise of the integral, by the number of classes.
INTEGRAL_BOUNDS = {2: 1e-9, 3: 1e-8, 4: 7e-5, 5: 2e-4, 8: 4e-4}
# The reference's table of E sigmoid(m + s Z).
TABLE_ERROR = 1e-9


@functools.cache
def reference_module() -> Any:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "converged.py"
    spec = importlib.util.spec_from_file_location("converged", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def case(classes: int, sd: float, rank: str) -> tuple[Tensor, Tensor]:
    """Draw one mean (1, K) and covariance (1, K, K), the largest logit's standard deviation being ``sd``."""
    generator = torch.Generator().manual_seed(10 * classes + round(sd))
    columns = classes if rank == "full" else max(1, classes // 2)
    root = torch.randn(1, classes, columns, generator=generator, dtype=torch.float64)
    root *= sd / root.square().sum(dim=2).max().sqrt()
    return max(sd, 1.0) * torch.randn(1, classes, generator=generator, dtype=torch.float64), root @ root.mT


@functools.cache
def reference(classes: int, sd: float, rank: str) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities and a bound on their error: five standard errors over the scrambles, and the table's."""
    mean, covariance = case(classes, sd, rank)
    found, error = reference_module().converged_softmax(mean[0].numpy(), covariance[0].numpy(), points_log2=15)
    return found, 5.0 * error + TABLE_ERROR


def several(classes: int, count: int = 5, sd: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed + classes)
    root = torch.randn(count, classes, classes, generator=generator, dtype=torch.float64) / math.sqrt(classes)
    return torch.randn(count, classes, generator=generator, dtype=torch.float64), sd**2 * root @ root.mT


# --- the table -----------------------------------------------------------------------------------------------


def test_the_table_has_the_rules_of_the_configuration() -> None:
    assert tuple(INTEGRATORS) == RULES
    assert LaplaceConfig().predictive == "integral"


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(LaplaceLoRAError, match=f"predictive='simpson' is not known; choose one of {', '.join(RULES)}"):
        LaplaceConfig(predictive="simpson")  # type: ignore[arg-type]


def test_a_new_rule_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def even(mean: Tensor, covariance: Tensor, points: int) -> tuple[Tensor, Tensor]:
        return torch.full_like(mean, 1.0 / mean.shape[1]), torch.full_like(mean[:, 0], 0.25)

    monkeypatch.setitem(INTEGRATORS, "even", even)  # type: ignore[misc]
    p = Predictive.from_gaussian(*several(4), "even")  # type: ignore[arg-type]
    assert torch.equal(p.probabilities, torch.full((5, 4), 0.25, dtype=torch.float64))
    torch.testing.assert_close(p.mutual_information, torch.full((5,), math.log(4) - 0.25, dtype=torch.float64))


@pytest.mark.parametrize("rule", RULES)
def test_what_is_no_gaussian_is_refused(rule: PredictiveRule) -> None:
    mean, covariance = several(3)
    with pytest.raises(LaplaceLoRAError, match=r"pass \(B, K\) and \(B, K, K\)\.$"):
        INTEGRATORS[rule](mean, covariance[:, :2], POINTS)
    covariance[2, 1, 1] = float("nan")
    with pytest.raises(LaplaceLoRAError, match=r"not finite.*raise the prior precision\.$"):
        INTEGRATORS[rule](mean, covariance, POINTS)


# --- against the reference -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("gap", "sd"), [(0.4, 0.3), (-2.0, 3.0), (10.0, 30.0)])
def test_the_reference_is_right_for_two_classes(gap: float, sd: float) -> None:
    edges = np.linspace(-9.0, 9.0, 73)
    exact = sum(
        integrate.quad(lambda z: special.expit(gap + sd * z) * stats.norm.pdf(z), a, b, epsabs=1e-13)[0]
        for a, b in itertools.pairwise(edges)
    )
    found, _ = reference_module().converged_softmax(np.array([gap, 0.0]), np.diag([sd**2, 0.0]), points_log2=4)
    np.testing.assert_allclose(found, [exact, 1.0 - exact], atol=TABLE_ERROR)


@pytest.mark.parametrize(("classes", "sd", "rank"), CELLS)
def test_the_integral_keeps_its_promise(classes: int, sd: float, rank: str) -> None:
    exact, error = reference(classes, sd, rank)
    found, _ = expected_softmax(*case(classes, sd, rank))
    assert (np.abs(found[0].numpy() - exact) <= INTEGRAL_BOUNDS[classes] + error).all()


@pytest.mark.parametrize(("classes", "sd", "rank"), CELLS)
def test_random_draws_are_within_five_standard_errors(classes: int, sd: float, rank: str) -> None:
    exact, error = reference(classes, sd, rank)
    draws = 20_000
    found, entropy = monte_carlo(*case(classes, sd, rank), draws)
    # A variable on [0, 1] of mean p has a variance of p (1 - p) at most.
    bound = 5.0 * np.sqrt(exact * (1.0 - exact) / draws)
    assert (np.abs(found[0].numpy() - exact) <= bound + error).all()
    # The entropy lies between 0 and log K.
    _, expected = expected_softmax(*case(classes, sd, rank))
    assert abs(float(entropy[0] - expected[0])) <= 5.0 * 0.5 * math.log(classes) / math.sqrt(draws) + 4e-4


@pytest.mark.parametrize("sd", [0.3, 3.0, 30.0])
def test_probit_of_two_classes_is_right_to_a_few_hundredths(sd: float) -> None:
    exact, error = reference(2, sd, "full")
    found, entropy = INTEGRATORS["probit"](*case(2, sd, "full"), POINTS)
    assert (np.abs(found[0].numpy() - exact) <= 0.03 + error).all()
    assert torch.equal(entropy, expected_softmax(*case(2, sd, "full"))[1])


# --- the Laplace bridge --------------------------------------------------------------------------------------


def test_the_bridge_by_hand() -> None:
    mu, own = [1.0, 0.5, -1.5], [0.5, 1.0, 2.5]
    # Centred variances of independent logits: (1 - 2/K) v_k + sum(v) / K^2.
    s = [v / 3.0 + sum(own) / 9.0 for v in own]
    alpha = [(1.0 / 3.0 + math.exp(m) * sum(math.exp(-x) for x in mu) / 9.0) / v for m, v in zip(mu, s, strict=True)]
    total = sum(alpha)
    entropy = sum(a / total * (special.digamma(total + 1.0) - special.digamma(a + 1.0)) for a in alpha)
    found, expected = laplace_bridge(torch.tensor([mu]), torch.diag(torch.tensor(own))[None])
    assert found[0].tolist() == pytest.approx([a / total for a in alpha], rel=1e-6)
    assert float(expected[0]) == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_bridge_returns_to_the_dirichlet_that_the_gaussian_is_of(classes: int, scale: float) -> None:
    rng = np.random.default_rng(classes)
    alpha = scale * rng.gamma(2.0, size=(6, classes))
    log_alpha = np.log(alpha)
    mean = log_alpha - log_alpha.mean(axis=1, keepdims=True)
    # MacKay's covariance of the logits of a Dirichlet distribution: H diag(1 / alpha) H.
    centring = np.eye(classes) - 1.0 / classes
    covariance = centring @ (np.eye(classes) / alpha[:, None, :]) @ centring
    found, entropy = laplace_bridge(torch.tensor(mean), torch.tensor(covariance))
    total = alpha.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), alpha / total, rtol=1e-9)
    expected = (alpha / total * (special.digamma(total + 1.0) - special.digamma(alpha + 1.0))).sum(axis=1)
    np.testing.assert_allclose(entropy.numpy(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_without_variance_the_bridge_is_the_softmax(classes: int, normalised: bool) -> None:
    mean, covariance = several(classes)
    exact = mean.softmax(dim=1)
    # None at all, and a shift of all logits alone.
    for spread in (torch.zeros_like(covariance), torch.full_like(covariance, 7.3)):
        found, entropy = laplace_bridge(mean, spread, normalised=normalised)
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-14)
        torch.testing.assert_close(entropy, torch.special.entr(exact).sum(dim=1), rtol=0, atol=1e-14)


def test_two_classes_over_the_bridge_are_the_softmax_of_the_mean() -> None:
    mean, covariance = several(2, sd=5.0)
    torch.testing.assert_close(laplace_bridge(mean, covariance)[0], mean.softmax(dim=1))


def test_the_bridge_rises_with_a_logit() -> None:
    _, covariance = several(4, count=1)
    # Further up the probability is 1 to the last bit.
    logit = torch.linspace(-20.0, 20.0, 81, dtype=torch.float64)
    mean = torch.zeros(81, 4, dtype=torch.float64)
    mean[:, 1] = logit
    found, _ = laplace_bridge(mean, covariance.expand(81, 4, 4))
    assert (found[:, 1].diff() > 0).all()


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("variance", [1e-200, 1e-10, 1.0, 1e12])
@pytest.mark.parametrize("size", [0.0, 1.0, 5000.0])
def test_the_bridge_is_safe_at_any_size(variance: float, size: float, normalised: bool) -> None:
    mean, covariance = several(5)
    # Of rank one, and without any variance of one class among them.
    covariance[1] = 1.0
    covariance[1, 2:] = covariance[1, :, 2:] = 0.0
    covariance[2] = torch.outer(covariance[2, 0], covariance[2, 0])
    found, entropy = laplace_bridge(mean * size, covariance * variance, normalised=normalised)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (found >= 0.0).all()
    assert (entropy >= 0.0).all()
    # Jensen: the expected entropy is no larger than that of the mean.
    assert (entropy <= torch.special.entr(found).sum(dim=1) + 1e-9).all()


def test_the_correction_of_two_classes_by_hand() -> None:
    # c = S_kk, a quarter of the variance of the difference, so that mu becomes +-gap / sd.
    gap, variance = 1.7, 9.0
    found, _ = laplace_bridge(
        torch.tensor([[gap, 0.0]]), torch.diag(torch.tensor([variance, 0.0]))[None], normalised=True
    )
    assert float(found[0, 0]) == pytest.approx(special.expit(2.0 * gap / math.sqrt(variance)), rel=1e-6)


# --- invariances ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_common_shift_changes_nothing(rule: PredictiveRule, classes: int) -> None:
    mean, covariance = several(classes)
    # The shift has a variance of its own, and covaries with the logits.
    loading = torch.linspace(-1.0, 2.0, classes, dtype=torch.float64)
    plain = INTEGRATORS[rule](mean, covariance, POINTS)
    shifted = INTEGRATORS[rule](mean + 100.0, covariance + 9.0 + loading[:, None] + loading, POINTS)
    for found, expected in zip(shifted, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classes_may_come_in_any_order(rule: PredictiveRule, classes: int) -> None:
    mean, covariance = several(classes)
    order = torch.arange(classes - 1, -1, -1)
    plain, entropy = INTEGRATORS[rule](mean, covariance, POINTS)
    turned, same = INTEGRATORS[rule](mean[:, order], covariance[:, order][:, :, order], POINTS)
    # Draws are others for every class: two averages, five standard errors of each.
    draws = 2.0 * 5.0 * 0.5 / math.sqrt(POINTS)
    bound = {"mc": draws, "integral": 2.0 * INTEGRAL_BOUNDS[classes]}.get(rule, 1e-12)
    assert (turned - plain[:, order]).abs().max() <= bound
    bound = {"mc": draws * math.log(classes), "laplace_bridge": 1e-12}.get(rule, 8e-4)
    assert (same - entropy).abs().max() <= bound


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_an_example_does_not_depend_on_its_batch(rule: PredictiveRule, classes: int) -> None:
    mean, covariance = several(classes, count=70)
    together = INTEGRATORS[rule](mean, covariance, 5000)
    for rows in (slice(0, 1), slice(33, 34), slice(20, 70)):
        for whole, part in zip(together, INTEGRATORS[rule](mean[rows], covariance[rows], 5000), strict=True):
            torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_the_global_random_state_is_left_alone(rule: PredictiveRule) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = INTEGRATORS[rule](*several(5), POINTS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    again = INTEGRATORS[rule](*several(5), POINTS)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("rule", RULES)
def test_one_class_is_certain_and_no_example_gives_none(rule: PredictiveRule) -> None:
    found, entropy = INTEGRATORS[rule](torch.zeros(3, 1), torch.ones(3, 1, 1), POINTS)
    assert found.tolist() == [[1.0]] * 3
    assert entropy.tolist() == [0.0] * 3
    found, entropy = INTEGRATORS[rule](torch.zeros(0, 4), torch.zeros(0, 4, 4), POINTS)
    assert found.shape == (0, 4)
    assert entropy.shape == (0,)


@pytest.mark.parametrize("rule", RULES)
def test_single_precision_gives_double(rule: PredictiveRule) -> None:
    mean, covariance = several(3)
    assert {part.dtype for part in INTEGRATORS[rule](mean.float(), covariance.float(), POINTS)} == {torch.float64}


def test_more_draws_than_a_block_are_all_used() -> None:
    mean, covariance = several(3, count=2)
    exact, _ = expected_softmax(mean, covariance)
    errors = [(monte_carlo(mean, covariance, points)[0] - exact).abs().max() for points in (1, 300_001)]
    assert errors[1] <= 5.0 * 0.5 / math.sqrt(300_001)
    assert errors[0] > errors[1]
    with pytest.raises(LaplaceLoRAError, match=r"give at least 1\.$"):
        monte_carlo(mean, covariance, 0)


# --- where rules are used ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_examples_with_fewer_options(rule: PredictiveRule) -> None:
    counts = (4, 2, 1, 3, 2)
    mean, covariance = several(4)
    for row, count in enumerate(counts):
        mean[row, count:] = float("-inf")
        covariance[row, count:] = covariance[row, :, count:] = 0.0
    p = of_options(mean, covariance, rule, POINTS)
    for row, count in enumerate(counts):
        own, entropy = INTEGRATORS[rule](mean[row : row + 1, :count], covariance[row : row + 1, :count, :count], POINTS)
        torch.testing.assert_close(p.probabilities[row, :count], own[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(p.aleatoric_entropy[row], entropy[0], rtol=0, atol=1e-12)
        assert (p.probabilities[row, count:] == 0.0).all()


@pytest.mark.parametrize("rule", RULES)
def test_the_likeliest_classes_alone(rule: PredictiveRule) -> None:
    mean, covariance = several(5)
    mean = mean.sort(dim=1, descending=True).values
    p = Predictive.of_top_classes(mean, covariance[:, :3, :3], rule, POINTS)
    among, _ = INTEGRATORS[rule](mean[:, :3], covariance[:, :3, :3], POINTS)
    torch.testing.assert_close(p.probabilities[:, :3], (1.0 - p.neglected_mass)[:, None] * among)
    torch.testing.assert_close(p.probabilities[:, 3:], p.map_probabilities[:, 3:])


@pytest.mark.parametrize("rule", RULES)
def test_an_estimator_follows_its_configuration(rule: PredictiveRule) -> None:
    data = batches(random_examples(8), 4)
    config = LaplaceConfig(predictive=rule, integration_points=512, progress=False)
    p = LaplaceLoRA(tiny_bert(), config).fit(data).predict(data[0])
    found, entropy = INTEGRATORS[rule](p.mean, p.covariance, 512)
    assert torch.equal(p.probabilities, found)
    assert torch.equal(p.aleatoric_entropy, entropy)


def test_tuning_under_random_draws_takes_their_limit() -> None:
    mean, covariance = several(4)
    drawn = mean_predictive(mean, covariance, LaplaceConfig(predictive="mc", integration_points=100_000))
    exact = mean_predictive(mean, covariance, LaplaceConfig())
    assert torch.equal(drawn.probabilities, exact.probabilities)
