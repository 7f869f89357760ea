"""The probit approximation against its formula written out, and its invariances."""

import math

import pytest
import torch
from torch import Tensor

from laplace_lora.predictive import expected_softmax, probit


def gaussian(classes: int, sd: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    root = torch.randn(7, classes, classes + 1, generator=generator, dtype=torch.float64)
    mean = 2.0 * torch.randn(7, classes, generator=generator, dtype=torch.float64)
    return mean, sd**2 * root @ root.mT / (classes + 1)


def test_two_classes_follow_mackay() -> None:
    mean, covariance = gaussian(2)
    probabilities = probit(mean, covariance)
    for i in range(len(mean)):
        gap = (mean[i, 1] - mean[i, 0]).item()
        variance = (covariance[i, 0, 0] + covariance[i, 1, 1] - 2.0 * covariance[i, 0, 1]).item()
        expected = 1.0 / (1.0 + math.exp(-gap / math.sqrt(1.0 + math.pi / 8.0 * variance)))
        assert probabilities[i].tolist() == pytest.approx([1.0 - expected, expected])


@pytest.mark.parametrize("classes", [3, 5])
def test_more_classes_follow_the_centred_formula(classes: int) -> None:
    mean, covariance = gaussian(classes)
    centring = torch.eye(classes, dtype=torch.float64) - 1.0 / classes
    variance = (centring @ covariance @ centring).diagonal(dim1=1, dim2=2)
    logits = (mean @ centring) / (1.0 + math.pi / 8.0 * variance).sqrt()
    torch.testing.assert_close(probit(mean, covariance), logits.softmax(dim=1))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_common_shift_changes_nothing(classes: int) -> None:
    mean, covariance = gaussian(classes)
    # The common shift has a variance of its own, and covaries with the logits.
    loading = torch.linspace(-1.0, 2.0, classes, dtype=torch.float64)
    shifted = covariance + 9.0 + loading[:, None] + loading
    torch.testing.assert_close(probit(mean + 100.0, shifted), probit(mean, covariance))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_without_variance_it_is_the_softmax(classes: int) -> None:
    mean, covariance = gaussian(classes)
    torch.testing.assert_close(probit(mean, torch.zeros_like(covariance)), mean.softmax(dim=1))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_it_is_nearer_to_the_integral_than_leaving_the_variance_out(classes: int) -> None:
    mean, covariance = gaussian(classes)
    exact, _ = expected_softmax(mean, covariance)
    error = (probit(mean, covariance) - exact).square().sum()
    assert error < 0.5 * (mean.softmax(dim=1) - exact).square().sum()


def test_two_classes_are_right_to_a_few_hundredths() -> None:
    # Over all means and variances, the known size of MacKay's error.
    gap, deviation = torch.meshgrid(torch.linspace(-30.0, 30.0, 121), torch.logspace(-2, 2, 41), indexing="ij")
    mean = torch.stack([torch.zeros_like(gap), gap], dim=-1).reshape(-1, 2)
    covariance = torch.zeros(len(mean), 2, 2)
    covariance[:, 1, 1] = deviation.reshape(-1).square()
    exact, _ = expected_softmax(mean, covariance)
    assert (probit(mean, covariance) - exact).abs().max() < 0.03


def test_the_result_is_float64() -> None:
    mean, covariance = gaussian(3)
    assert probit(mean.float(), covariance.float()).dtype == torch.float64
