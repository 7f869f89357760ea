"""Predictions that keep the trained adapter's answers: the variance spread evenly over the contrasts of the logits."""

import pytest
import torch
from torch import Tensor

from laplace_lora import Predictive
from laplace_lora.predictive import INTEGRATORS, of_options
from laplace_lora.predictive.even import evened, in_order_of

EXAMPLES = 40


def _gaussians(classes: int, spread: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Means that are nearly tied in every other example, and covariances that favour single classes."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(EXAMPLES, classes, generator=generator, dtype=torch.float64)
    mean[::2] *= 1e-6
    root = torch.randn(EXAMPLES, classes, classes, generator=generator, dtype=torch.float64)
    root = root * (spread * torch.rand(EXAMPLES, classes, 1, generator=generator, dtype=torch.float64) ** 4)
    return mean, root @ root.mT


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_variance_of_all_contrasts_together_stays(classes: int) -> None:
    """By plain loops over all pairs of classes, whose differences' variances add up to K tr(H S H)."""
    _, covariance = _gaussians(classes)
    found = evened(covariance)
    for before, after in zip(covariance, found, strict=True):

        def pairs(matrix: Tensor) -> list[float]:
            return [
                float(matrix[i, i] + matrix[j, j] - 2 * matrix[i, j]) for i in range(classes) for j in range(classes)
            ]

        assert sum(pairs(after)) == pytest.approx(sum(pairs(before)), rel=1e-12)
        of_others = [pairs(after)[i * classes + j] for i in range(classes) for j in range(classes) if i != j]
        assert max(of_others) == pytest.approx(min(of_others), rel=1e-12)


def test_of_two_classes_nothing_changes() -> None:
    mean, covariance = _gaussians(2)
    plain, kept = (Predictive.from_gaussian(mean, covariance, keeps_answers=keeps) for keeps in (False, True))
    for name in ("probabilities", "aleatoric_entropy", "mutual_information"):
        torch.testing.assert_close(getattr(kept, name), getattr(plain, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", INTEGRATORS)
@pytest.mark.parametrize("classes", [3, 4, 7, 15])
def test_the_order_of_all_classes_is_that_of_the_means(classes: int, rule: str) -> None:
    mean, covariance = _gaussians(classes)
    kept = Predictive.from_gaussian(mean, covariance, rule, 512, keeps_answers=True)  # type: ignore[arg-type]
    along = kept.probabilities.gather(1, mean.argsort(dim=1, descending=True))
    assert (along.diff(dim=1) <= 0).all()
    torch.testing.assert_close(kept.probabilities.sum(1), torch.ones(EXAMPLES).double(), rtol=0, atol=1e-9)
    assert torch.equal(kept.covariance, covariance)
    plain = Predictive.from_gaussian(mean, covariance, rule, 512)  # type: ignore[arg-type]
    assert (plain.prediction != mean.argmax(dim=1)).any(), "the question did not arise"


def test_probabilities_are_those_of_the_even_gaussian() -> None:
    """Against plain Monte Carlo with exchangeable noise, and only a rounding moved to keep the order."""
    mean, covariance = _gaussians(4, spread=2.0)
    kept = Predictive.from_gaussian(mean, covariance, keeps_answers=True)
    deviation = evened(covariance).diagonal(dim1=1, dim2=2)[:, 0].mul(4 / 3).sqrt()  # s, where the diagonal is s^2 3/4
    noise = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = torch.stack([(m + s * noise).softmax(1).mean(0) for m, s in zip(mean, deviation, strict=True)])
    assert (kept.probabilities - drawn).abs().max() < 5e-3
    plain = Predictive.from_gaussian(mean, evened(covariance))
    assert (kept.probabilities - plain.probabilities).abs().max() < 1e-4


def test_of_the_largest_classes_and_of_absent_options() -> None:
    mean, covariance = _gaussians(6)
    order = mean.argsort(dim=1, descending=True)[:, :3]
    among = torch.stack([c[o][:, o] for c, o in zip(covariance, order, strict=True)])
    top = Predictive.of_top_classes(mean, among, keeps_answers=True)
    assert torch.equal(top.prediction, mean.argmax(dim=1))
    short = mean.clone()
    short[::3, 4:], covariance[::3, 4:], covariance[::3, :, 4:] = float("-inf"), 0.0, 0.0
    found = of_options(short, covariance, keeps_answers=True)
    assert torch.equal(found.prediction, short.argmax(dim=1))
    alone = Predictive.from_gaussian(short[:1, :4], covariance[:1, :4, :4], keeps_answers=True)
    torch.testing.assert_close(found.probabilities[0, :4], alone.probabilities[0], rtol=0, atol=1e-12)
    assert (found.probabilities[::3, 4:] == 0).all()


def test_a_rounding_that_swaps_two_is_undone() -> None:
    mean = torch.tensor([[0.2, 0.1, -1.0]], dtype=torch.float64)
    swapped = torch.tensor([[0.40, 0.41, 0.19]], dtype=torch.float64)
    assert in_order_of(mean, swapped).tolist() == [[0.41, 0.40, 0.19]]
