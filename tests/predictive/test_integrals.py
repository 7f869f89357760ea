"""The integration rules against integrals computed in other ways: scipy's, dense tensor grids, and Gumbel noise."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, interpolate, special, stats
from torch import Tensor

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.predictive import expected_softmax
from laplace_lora.predictive.logistic_normal import LogisticNormalTable, logistic_normal
from laplace_lora.predictive.sequential import order_and_factorise

# What the documentation promises at the default number of points: for four to six classes, up to twelve, and above.
PROBABILITY_BOUND, ENTROPY_BOUND = 2e-4, 4e-4
DOZEN_BOUND = 4e-4
JOINT_BOUND = 1.5e-3


def by_grid(mean: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, float]:
    """Integrate softmax(mean + root z) over the whole of z by a tensor trapezoid that resolves every direction.

    Args:
        mean: (K,) logits.
        root: (K, r) root of the covariance.

    Returns:
        (K,) probabilities and the expected entropy, with errors of 1e-8 or so.
    """
    logits, weights = mean[None, :], np.ones(1)
    for column in root.T:
        # The softmax has its nearest poles at pi / (largest difference of slopes).
        step = min(1.0, 1.0 / max(np.ptp(column), 1e-12))
        z = np.arange(-math.ceil(6.0 / step), math.ceil(6.0 / step) + 1) * step
        logits = (logits[:, None, :] + z[:, None] * column).reshape(-1, len(mean))
        weights = (weights[:, None] * stats.norm.pdf(z) * step).reshape(-1)
    log_probabilities = special.log_softmax(logits, axis=1)
    probabilities = np.exp(log_probabilities)
    return weights @ probabilities, float(-weights @ (probabilities * log_probabilities).sum(axis=1))


def by_gumbel(mean: np.ndarray, own: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Integrate E softmax(f) for f = mean + factor z + own * noise, as P(f_k + Gumbel_k is the largest).

    Given z the K sums are independent, which leaves one integral over the largest one's value, whatever K is.

    Args:
        mean: (K,) logits.
        own: (K,) positive standard deviations of the independent noise.
        factor: (K,) loadings of the common factor.

    Returns:
        (K,) probabilities.
    """
    gumbel = np.arange(-4.0, 25.0, 0.25)
    gumbel_weights = stats.gumbel_r.pdf(gumbel) * 0.25
    # Distribution and density of own * noise + Gumbel, once per class, on a grid around its centre.
    widest = float(np.abs(mean).max() + 7.0 * (own.max() + np.abs(factor).max()) + 20.0)
    x = np.linspace(-widest, widest, 2001)
    table = []
    for deviation in own:
        z = (x[:, None] - gumbel) / deviation
        below, density = special.ndtr(z) @ gumbel_weights, stats.norm.pdf(z) @ gumbel_weights / deviation
        table.append((interpolate.CubicSpline(x, below), interpolate.CubicSpline(x, density)))
    nodes = np.arange(-6.0, 6.01, 0.1) if factor.any() else np.zeros(1)
    node_weights = stats.norm.pdf(nodes) * 0.1 if factor.any() else np.ones(1)
    total = np.zeros(len(mean))
    for z, weight in zip(nodes, node_weights, strict=True):
        centres = mean + factor * z
        # Beyond the grid the functions are constant.
        places = [np.clip(x - centre, x[0], x[-1]) for centre in centres]
        below = np.array([spline(place) for place, (spline, _) in zip(places, table, strict=True)])
        density = np.array([spline(place) for place, (_, spline) in zip(places, table, strict=True)])
        for k in range(len(mean)):
            total[k] += weight * np.trapezoid(density[k] * np.delete(below, k, axis=0).prod(axis=0), x)
    return total


def random_root(rng: np.random.Generator, classes: int, rank: int, sd: float) -> np.ndarray:
    """Draw a (K, rank) root, the largest standard deviation of a logit being ``sd``."""
    root = rng.normal(size=(classes, rank))
    return root * sd / np.sqrt((root**2).sum(axis=1).max())


def rule(mean: np.ndarray, covariance: np.ndarray, points: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    probabilities, entropy = expected_softmax(torch.tensor(mean), torch.tensor(covariance), points)
    return probabilities.numpy(), entropy.numpy()


def wishart(classes: int, count: int, sd: float, seed: int, freedom: int) -> tuple[Tensor, Tensor]:
    """Draw means and covariances: Wishart, of rank min(K, freedom), the largest logit's deviation being ``sd``."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(count, classes, freedom, generator=generator, dtype=torch.float64)
    covariance = root @ root.mT
    covariance *= sd**2 / covariance.diagonal(dim1=1, dim2=2).amax(dim=1)[:, None, None]
    return torch.randn(count, classes, generator=generator, dtype=torch.float64) * sd, covariance


@pytest.mark.parametrize("sd", [0.0, 1e-8, 1e-3, 0.1, 1.0, 1.49, 1.51, 5.0, 30.0, 100.0])
@pytest.mark.parametrize("shift", [0.0, -0.3, 2.0, -3.0])
def test_two_classes_against_adaptive_quadrature(sd: float, shift: float) -> None:
    gap = shift * max(sd, 1.0)
    # Var(f1 - f0) = sd^2, unequally shared and correlated.
    covariance = np.array([[0.5, 0.1], [0.1, 0.7]]) * sd**2
    probabilities, entropy = rule(np.array([[0.4, 0.4 + gap]]), covariance[None])

    def average(function) -> float:
        def integrand(z: float) -> float:
            return function(gap + sd * z) * stats.norm.pdf(z)

        if sd == 0.0:
            return function(gap)
        # Tell it where the sigmoid turns.
        turn, width = -gap / sd, 1.0 / sd
        breaks = sorted(
            {float(np.clip(turn + width * t, -9.0, 9.0)) for t in (-40.0, -10.0, -3.0, 0.0, 3.0, 10.0, 40.0)}
        )
        ends = [-9.0, *breaks, 9.0]
        return sum(integrate.quad(integrand, a, b, epsabs=1e-12)[0] for a, b in itertools.pairwise(ends) if b > a)

    assert probabilities[0, 1] == pytest.approx(average(special.expit), abs=1e-9)
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-14)
    binary = average(lambda x: special.entr(special.expit(x)) + special.entr(special.expit(-x)))
    assert entropy[0] == pytest.approx(binary, abs=1e-9)


def test_improbable_classes_keep_their_relative_accuracy() -> None:
    mean = np.array([[0.0, -40.0]])
    probabilities, _ = rule(mean, np.diag([0.0, 2.0**2])[None])
    # E sigmoid(x) = E exp(x) so far down.
    assert probabilities[0, 1] == pytest.approx(math.exp(-40.0 + 2.0), rel=1e-6)


@pytest.mark.parametrize("sd", [1e-3, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("rank", [1, 2])
def test_three_classes_against_a_dense_grid(sd: float, rank: int) -> None:
    rng = np.random.default_rng(3)
    for scale in (0.0, 0.5, 2.0):
        root = random_root(rng, 3, rank, sd)
        mean = rng.normal(size=3) * max(sd, 1.0) * scale
        expected, expected_entropy = by_grid(mean, root)
        probabilities, entropy = rule(mean[None], (root @ root.T)[None])
        np.testing.assert_allclose(probabilities[0], expected, rtol=0, atol=1e-7)
        assert entropy[0] == pytest.approx(expected_entropy, abs=1e-7)


@pytest.mark.parametrize("classes", [4, 5, 6])
@pytest.mark.parametrize("rank", [1, 2])
def test_low_rank_covariances_against_a_dense_grid(classes: int, rank: int) -> None:
    rng = np.random.default_rng(10 * classes + rank)
    for sd, scale in itertools.product((1e-3, 1.0, 10.0, 30.0), (0.0, 1.0)):
        root = random_root(rng, classes, rank, sd)
        mean = rng.normal(size=classes) * max(sd, 1.0) * scale
        expected, expected_entropy = by_grid(mean, root)
        probabilities, entropy = rule(mean[None], (root @ root.T)[None])
        np.testing.assert_allclose(probabilities[0], expected, rtol=0, atol=PROBABILITY_BOUND)
        assert entropy[0] == pytest.approx(expected_entropy, abs=ENTROPY_BOUND)


@pytest.mark.parametrize(
    "deviations",
    [(30.0, 1.0, 0.3), (1.0, 1.0, 1.0), (5.0, 3.0, 0.1), (0.8, 0.8, 0.8, 0.8), (8.0, 1.0, 0.2, 0.1), (0.7,) * 5],
    ids=str,
)
def test_full_rank_covariances_against_a_dense_grid(deviations: tuple[float, ...]) -> None:
    classes = len(deviations) + 1
    rng = np.random.default_rng(classes)
    # Orthonormal directions without the common shift, so that the tensor grid follows the principal axes.
    contrasts = np.linalg.qr(np.hstack([np.ones((classes, 1)), rng.normal(size=(classes, classes - 1))]))[0][:, 1:]
    root = contrasts * np.array(deviations)
    mean = rng.normal(size=classes)
    expected, expected_entropy = by_grid(mean, root)
    # The common shift's variance is of no consequence.
    probabilities, entropy = rule(mean[None], (root @ root.T + 7.0)[None])
    np.testing.assert_allclose(probabilities[0], expected, rtol=0, atol=PROBABILITY_BOUND)
    assert entropy[0] == pytest.approx(expected_entropy, abs=ENTROPY_BOUND)


@pytest.mark.parametrize("classes", [3, 4, 5, 6, 9, 16])
@pytest.mark.parametrize("with_factor", [False, True])
def test_large_full_rank_covariances_against_gumbel_noise(classes: int, with_factor: bool) -> None:
    rng = np.random.default_rng(classes)
    for scale in (0.0, 0.5, 2.0):
        own = 30.0 * rng.uniform(0.1, 1.0, size=classes)
        factor = 30.0 * rng.normal(size=classes) * with_factor
        mean = 30.0 * scale * rng.normal(size=classes)
        expected = by_gumbel(mean, own, factor)
        assert expected.sum() == pytest.approx(1.0, abs=1e-6)
        probabilities, _ = rule(mean[None], (np.diag(own**2) + np.outer(factor, factor))[None])
        bound = {3: 1e-6, 9: DOZEN_BOUND, 16: JOINT_BOUND}.get(classes, PROBABILITY_BOUND)
        np.testing.assert_allclose(probabilities[0], expected, rtol=0, atol=bound)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6, 13])
def test_an_example_does_not_depend_on_its_batch(classes: int) -> None:
    mean, covariance = wishart(classes, 12, 20.0, seed=classes, freedom=classes)
    # Other standard deviations and ranks take other paths through the rule.
    covariance[::3] *= 1e-3
    covariance[1::4, :, :] = wishart(classes, 12, 30.0, seed=1, freedom=2)[1][1::4]
    together, entropies = expected_softmax(mean, covariance)
    for i in range(len(mean)):
        alone, entropy = expected_softmax(mean[i : i + 1], covariance[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-13)
        torch.testing.assert_close(entropy[0], entropies[i], rtol=0, atol=1e-13)


@pytest.mark.parametrize("classes", [3, 4, 5, 6])
def test_renaming_the_classes_renames_the_probabilities(classes: int) -> None:
    mean, covariance = wishart(classes, 6, 30.0, seed=classes, freedom=classes + 1)
    probabilities, entropy = expected_softmax(mean, covariance)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(0))
    renamed, renamed_entropy = expected_softmax(mean[:, order], covariance[:, order][:, :, order])
    # Both are off, by as much as that at most.
    bound = 1e-7 if classes == 3 else 2.0 * PROBABILITY_BOUND
    torch.testing.assert_close(renamed, probabilities[:, order], rtol=0, atol=bound)
    torch.testing.assert_close(renamed_entropy, entropy, rtol=0, atol=1e-7 if classes == 3 else 2.0 * ENTROPY_BOUND)


@pytest.mark.parametrize("classes", [3, 4, 5])
@pytest.mark.parametrize("sd", [0.5, 10.0, 100.0])
def test_impossible_classes_change_nothing(classes: int, sd: float) -> None:
    mean, covariance = wishart(2, 4, sd, seed=7, freedom=3)
    wide_mean = torch.nn.functional.pad(mean, (0, classes - 2), value=-1000.0)
    wide_covariance = torch.nn.functional.pad(covariance, (0, classes - 2, 0, classes - 2))
    expected, expected_entropy = expected_softmax(mean, covariance)
    probabilities, entropy = expected_softmax(wide_mean, wide_covariance)
    bound = 1e-7 if classes == 3 else PROBABILITY_BOUND / 5
    torch.testing.assert_close(probabilities[:, :2], expected, rtol=0, atol=bound)
    torch.testing.assert_close(entropy, expected_entropy, rtol=0, atol=10 * bound)
    assert probabilities[:, 2:].max() < 1e-6


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("sd", [0.0, 1e-8])
def test_without_variance_it_is_the_softmax(classes: int, sd: float) -> None:
    mean = 3.0 * torch.randn(20, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance = sd**2 * torch.eye(classes, dtype=torch.float64).expand(20, classes, classes)
    probabilities, entropy = expected_softmax(mean, covariance)
    softmax = mean.softmax(dim=1)
    torch.testing.assert_close(probabilities, softmax, rtol=0, atol=1e-6)
    torch.testing.assert_close(entropy, torch.special.entr(softmax).sum(dim=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_small_variances_give_their_mutual_information(classes: int) -> None:
    mean, covariance = wishart(classes, 20, 0.05, seed=classes, freedom=2 * classes)
    mean /= 0.05
    probabilities, entropy = expected_softmax(mean, covariance)
    p = mean.softmax(dim=1)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    # To second order the mutual information is half the trace of the softmax's Fisher matrix times the covariance.
    expected = 0.5 * (fisher * covariance).sum(dim=(1, 2))
    information = torch.special.entr(probabilities).sum(dim=1) - entropy
    torch.testing.assert_close(information, expected, rtol=0.02, atol=2e-6)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("freedom", [1, 3, 12])
def test_huge_variances_compare_normals(classes: int, freedom: int) -> None:
    mean, covariance = wishart(classes, 6, 1e4, seed=classes, freedom=freedom)
    probabilities, entropy = expected_softmax(mean, covariance)
    assert probabilities.isfinite().all()
    # The softmax of such logits is one-hot, and its scale of no consequence.
    doubled, _ = expected_softmax(2.0 * mean, 4.0 * covariance)
    torch.testing.assert_close(probabilities, doubled, rtol=0, atol=5e-4)
    assert entropy.abs().max() < 2e-3
    if classes == 2:
        gap = mean[:, 1] - mean[:, 0]
        variance = covariance[:, 0, 0] + covariance[:, 1, 1] - 2.0 * covariance[:, 0, 1]
        torch.testing.assert_close(probabilities[:, 1], torch.special.ndtr(gap / variance.sqrt()), rtol=0, atol=1e-6)


def test_identical_logits_share_equally() -> None:
    for classes, sd in itertools.product((2, 3, 4, 6), (1e-8, 1.0, 30.0, 1e4)):
        # All logits the same random variable (rank 1, no differences), or independent with one variance.
        for covariance in (torch.ones(classes, classes), torch.eye(classes)):
            probabilities, _ = expected_softmax(torch.full((1, classes), 2.0), sd**2 * covariance[None])
            torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1.0 / classes), rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 6])
def test_mutual_information_is_not_negative(classes: int) -> None:
    for sd in (1e-3, 0.3, 3.0, 30.0):
        for freedom in (1, 2, 2 * classes):
            mean, covariance = wishart(classes, 10, sd, seed=classes, freedom=freedom)
            probabilities, entropy = expected_softmax(mean, covariance)
            information = torch.special.entr(probabilities).sum(dim=1) - entropy
            tolerance = 1e-8 if classes < 4 else 1e-6 if sd < 0.1 else 1e-4
            assert information.min() > -tolerance
            assert entropy.min() > 0.0
            torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(10, dtype=torch.float64))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_only_differences_matter(classes: int) -> None:
    mean, covariance = wishart(classes, 8, 5.0, seed=1, freedom=4)
    centring = torch.eye(classes, dtype=torch.float64) - 1.0 / classes
    expected = expected_softmax(mean, covariance)
    for shifted in (
        expected_softmax(mean + 1000.0, covariance + 50.0),
        expected_softmax(mean @ centring, centring @ covariance @ centring),
    ):
        torch.testing.assert_close(shifted, expected, rtol=0, atol=1e-7 if classes < 4 else 1e-5)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_results_are_float64_and_repeatable_and_draw_no_random_numbers(classes: int) -> None:
    mean, covariance = wishart(classes, 3, 5.0, seed=1, freedom=4)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = expected_softmax(mean.float().requires_grad_(), covariance.float())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = expected_softmax(mean.float(), covariance.float())
    for one, two in zip(first, second, strict=True):
        assert one.dtype == torch.float64
        assert not one.requires_grad
        assert torch.equal(one, two)


def test_more_points_are_more_accurate() -> None:
    mean, covariance = wishart(5, 6, 30.0, seed=3, freedom=3)
    exact, _ = expected_softmax(mean, covariance, points=2**16)
    errors = [(expected_softmax(mean, covariance, points)[0] - exact).abs().max() for points in (256, 4096, 16384)]
    assert errors[0] > errors[1] > errors[2]


def test_an_empty_batch_has_no_probabilities() -> None:
    probabilities, entropy = expected_softmax(torch.zeros(0, 4), torch.zeros(0, 4, 4))
    assert probabilities.shape == (0, 4)
    assert entropy.shape == (0,)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(LaplaceLoRAError, match=r"pass \(B, K\)"):
        expected_softmax(torch.zeros(2, 4), torch.zeros(2, 3, 3))
    with pytest.raises(LaplaceLoRAError, match="at least 32"):
        expected_softmax(torch.zeros(2, 4), torch.zeros(2, 4, 4), points=16)
    with pytest.raises(LaplaceLoRAError, match="not finite"):
        expected_softmax(torch.full((2, 4), torch.nan), torch.zeros(2, 4, 4))


def test_the_table_interpolates_the_quadrature() -> None:
    sd = torch.tensor([0.0, 1e-3, 0.5, 1.49, 1.5, 3.0, 30.0, 1e4], dtype=torch.float64)
    mean = 2.0 * torch.rand(len(sd), 2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 1.0
    mean *= 30.0 + 8.0 * sd[:, None]
    for looked_up, computed in zip(LogisticNormalTable.of(sd)(mean), logistic_normal(mean, sd[:, None]), strict=True):
        torch.testing.assert_close(looked_up, computed, rtol=0, atol=1e-7)


def test_the_ordered_root_reproduces_the_covariance() -> None:
    mean, covariance = wishart(5, 10, 10.0, seed=0, freedom=3)
    ordered, root = order_and_factorise(mean, covariance)
    assert torch.equal(root, root.tril())
    order = (mean[:, :, None] == ordered[:, None, :]).double()
    torch.testing.assert_close(root @ root.mT, order.mT @ covariance @ order, rtol=0, atol=1e-9)
