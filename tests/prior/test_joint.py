"""Precisions and a temperature chosen together, against plain sums, the exact integral and brute force."""

import math
from itertools import product

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from laplace_lora.config import Score
from laplace_lora.evaluation import metrics
from laplace_lora.evaluation.outputs import Probabilities
from laplace_lora.predictive import expected_softmax
from laplace_lora.predictive.differentiable import smooth_probabilities
from laplace_lora.prior import SCALES, AtScales, HeldOut, choose_jointly, score
from laplace_lora.prior.joint import GROUP_SD, LEVEL, LEVEL_SD, TEMPERATURE_SD
from prior.scenes import Scene, scene

ONE = torch.ones(1, dtype=torch.float64)


def exact_score(scene: Scene, precision: Tensor, temperature: float, kind: Score = "nll") -> float:
    """The score by sums without nodes and the exact integral."""
    held_out = scene.held_out
    probabilities, _ = expected_softmax(held_out.mean / temperature, scene.covariance(precision), 512)
    chosen = probabilities.gather(1, held_out.labels[:, None])
    if kind == "nll":
        return float(-chosen.log().mean())
    return float((probabilities.square().sum(dim=1) - 2.0 * chosen[:, 0] + 1.0).mean())


def exact_objective(scene: Scene, logs: np.ndarray, initial: Tensor, kind: Score = "nll") -> float:
    """What is minimised, written out: N times the score and the weak prior."""
    moved = [float(log - start) for log, start in zip(logs[:-1], initial.log().tolist(), strict=True)]
    level = sum(moved) / len(moved)
    penalty = (level - math.log(LEVEL)) ** 2 / LEVEL_SD**2 + sum((one - level) ** 2 for one in moved) / GROUP_SD**2
    penalty += float(logs[-1]) ** 2 / TEMPERATURE_SD**2
    value = exact_score(scene, torch.tensor(logs[:-1]).exp(), math.exp(logs[-1]), kind)
    return len(scene.held_out) * value + 0.5 * penalty


@pytest.mark.parametrize("sd", [0.3, 1.0, 3.0, 10.0, 30.0])
@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_the_mean_over_examples_is_right_to_a_thousandth(classes: int, sd: float) -> None:
    generator = torch.Generator().manual_seed(classes)
    mean = 3.0 * torch.randn(200, classes, dtype=torch.float64, generator=generator)
    roots = torch.randn(200, classes, classes, dtype=torch.float64, generator=generator)
    covariance = sd**2 * roots @ roots.mT / classes
    labels = torch.multinomial(torch.softmax(mean / max(1.0, sd), dim=1), 1, generator=generator)
    expected, _ = expected_softmax(mean, covariance, 8192)
    found = smooth_probabilities(mean, covariance)
    difference = float((found.gather(1, labels).log() - expected.gather(1, labels).log()).mean())
    assert abs(difference) < (1e-3 if sd <= 10 else 2e-3)


def test_derivatives_are_those_of_finite_differences() -> None:
    made = scene(20, 4, groups=2)
    point = torch.tensor([0.3, -0.4, 0.2], dtype=torch.float64, requires_grad=True)

    def value(point: Tensor) -> Tensor:
        return score([made.held_out], point[:2].exp(), point[2].exp(), "nll", 512)

    assert torch.autograd.gradcheck(value, (point,), eps=1e-5, atol=1e-7)


def test_the_global_generator_is_left_alone_and_absent_options_have_nothing() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    mean = torch.tensor([[1.0, 0.0, -torch.inf], [0.3, 0.1, 0.2]], dtype=torch.float64)
    covariance = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    covariance[0, 2] = covariance[0, :, 2] = 0.0
    found = smooth_probabilities(mean, covariance)
    assert torch.equal(torch.get_rng_state(), before)
    assert float(found[0, 2]) == 0.0
    pair, _ = expected_softmax(mean[:1, :2], covariance[:1, :2, :2])
    assert (found[0, :2] - pair[0]).abs().max() < 1e-3


@pytest.mark.parametrize("kind", ["nll", "brier"])
@pytest.mark.parametrize(("classes", "confident"), [(2, 1.0), (2, 5.0), (4, 4.0)])
def test_one_precision_and_a_temperature_are_those_of_a_grid(classes: int, confident: float, kind: Score) -> None:
    made = scene(40, classes, confident=confident, seed=classes)
    chosen = choose_jointly([made.held_out], ONE, kind)
    reached = exact_objective(made, np.log([float(chosen.precision), chosen.temperature]), ONE, kind)
    grid = product(np.linspace(-4, 14, 10), np.log(np.geomspace(0.4, 6.0, 7)))
    best = min(exact_objective(made, np.array(point), ONE, kind) for point in grid)
    assert reached <= best + 40 * 1e-3
    assert chosen.score == pytest.approx(exact_score(made, chosen.precision, chosen.temperature, kind), abs=1e-3)


def test_groups_are_those_of_a_search_without_derivatives() -> None:
    made = scene(80, 2, groups=3, seed=5)
    initial = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    chosen = choose_jointly([made.held_out], initial)
    reached = exact_objective(made, np.log([*chosen.precision.tolist(), chosen.temperature]), initial)
    found = scipy.optimize.minimize(
        lambda logs: exact_objective(made, logs, initial),
        np.array([*initial.log().tolist(), 0.0]),
        method="Nelder-Mead",
        options={"maxiter": 400},
    )
    assert reached <= float(found.fun) + 80 * 1e-3


def test_folds_are_one_set_of_examples() -> None:
    """Two adapters' folds, each with nodes of its own, are scored as all their examples together."""
    first, second = scene(30, 2, seed=1), scene(50, 2, seed=2)
    precision = torch.tensor([0.7], dtype=torch.float64)
    together = float(score([first.held_out, second.held_out], precision, 1.4))
    apart = [exact_score(one, precision, 1.4) for one in (first, second)]
    assert together == pytest.approx((30 * apart[0] + 50 * apart[1]) / 80, abs=1e-3)
    chosen = choose_jointly([first.held_out, second.held_out], ONE)
    logs = np.log([float(chosen.precision), chosen.temperature])
    penalty = exact_objective(first, logs, ONE) - 30 * exact_score(first, chosen.precision, chosen.temperature)

    def both(logs: np.ndarray) -> float:
        return exact_objective(first, logs, ONE) + exact_objective(second, logs, ONE)

    grid = product(np.linspace(-4, 12, 9), np.log(np.geomspace(0.5, 8.0, 7)))
    # Written out twice, the weak prior counts twice on the grid: its own part is taken off once on both sides.
    best = min(both(np.array(point)) - _penalty(first, np.array(point)) for point in grid)
    assert both(logs) - penalty <= best + 80 * 1e-3


def _penalty(made: Scene, logs: np.ndarray) -> float:
    value = exact_score(made, torch.tensor(logs[:-1]).exp(), math.exp(logs[-1]))
    return exact_objective(made, logs, ONE) - len(made.held_out) * value


@pytest.mark.parametrize("kind", ["nll", "brier", "ece"])
def test_where_nothing_depends_on_them_the_weak_prior_chooses(kind: Score) -> None:
    made = scene(40, 3)
    flat = HeldOut(torch.zeros_like(made.held_out.mean), _nothing(made), made.held_out.labels)
    initial = torch.tensor([7.0], dtype=torch.float64)
    chosen = choose_jointly([flat], initial, kind)
    assert float(chosen.precision) == pytest.approx(7.0 * LEVEL, rel=1e-3)
    assert chosen.temperature == pytest.approx(1.0, abs=1e-3)


def _nothing(made: Scene) -> AtScales:
    shape = made.held_out.mean.shape
    return AtScales(torch.zeros(len(SCALES), *shape, shape[1], dtype=torch.float64))


def test_a_temperature_can_be_left_out() -> None:
    chosen = choose_jointly([scene(40, 3).held_out], ONE, tune_temperature=False)
    assert chosen.temperature == 1.0


@pytest.mark.parametrize("classes", [2, 4])
def test_the_ece_is_lowered_and_is_that_of_the_metrics(classes: int) -> None:
    made = scene(200, classes, confident=6.0).held_out
    chosen = choose_jointly([made], ONE, "ece")
    assert chosen.score < float(score([made], ONE, 1.0, "ece"))
    probabilities = made.probabilities(chosen.precision, chosen.temperature)
    expected = metrics.ece(Probabilities(probabilities.numpy()), made.labels.numpy())
    assert chosen.score == pytest.approx(expected, abs=1e-12)


def test_multiples_are_interpolated_between_and_kept_at_the_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(len(SCALES), 5, 3, 3, dtype=torch.float64, generator=generator)
    table = AtScales(roots @ roots.mT)
    for position in (0, 7, len(SCALES) - 1):
        found = table.covariance(SCALES[position : position + 1])
        assert torch.allclose(found, table.covariances[position], rtol=1e-12)
    between = table.covariance((SCALES[7] * SCALES[8]).sqrt()[None])
    assert torch.allclose(between, 0.5 * (table.covariances[7] + table.covariances[8]), rtol=1e-12)
    assert torch.allclose(table.covariance(torch.tensor([1e-30])), table.covariances[0])
    assert torch.linalg.eigvalsh(between).min() > 0


@pytest.mark.parametrize("confident", [1.0, 4.0])
def test_forty_examples_do_no_harm(confident: float) -> None:
    """Sound (1) and over-confident (4): fifty subsets of forty, measured on all other examples."""
    made = scene(1000, 2, confident=confident, seed=3)
    held_out = made.held_out
    generator = torch.Generator().manual_seed(0)
    harms = []
    for _ in range(50):
        order = torch.randperm(1000, generator=generator)
        few, rest = (_rows(held_out, part) for part in (order[:40], order[40:]))
        chosen = choose_jointly([few], ONE)
        tuned = float(score([rest], chosen.precision, chosen.temperature))
        plain = torch.log_softmax(rest.mean, dim=1).gather(1, rest.labels[:, None])
        harms.append(tuned + float(plain.mean()))
    assert sum(harms) / 50 <= 0.01
    assert max(harms) < 0.2


def _rows(held_out: HeldOut, rows: Tensor) -> HeldOut:
    spectrum = held_out.spectrum
    part = type(spectrum)(spectrum.nodes, spectrum.table[:, :, rows])
    return HeldOut(held_out.mean[rows], part, held_out.labels[rows])
