"""Rows of the GGN and log-likelihoods, saturated or not."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from laplace_lora import LaplaceLoRAError
from laplace_lora.likelihoods import Categorical, Gaussian, contrast_basis

CLASSES = [2, 3, 4, 7]
LOGITS = {
    "ordinary": lambda k: torch.randn(16, k, generator=torch.Generator().manual_seed(k), dtype=torch.float64) * 3,
    "equal": lambda k: torch.zeros(3, k, dtype=torch.float64),
    "saturated at 40": lambda k: _saturated(k, 40.0),
    "saturated at 1000": lambda k: _saturated(k, 1e3),
}


def _saturated(classes: int, size: float) -> Tensor:
    """Make every class far ahead, far behind, and level with one other far ahead of the rest."""
    ahead = size * (2 * torch.eye(classes, dtype=torch.float64) - 1)
    tied = ahead.clone()
    tied[:, 0] = size
    tied[0, 1] = size
    return torch.cat([ahead, -ahead, tied])


def _curvature(logits: Tensor) -> Tensor:
    """diag(p) - p p^T with 1 - p of the likeliest class as a sum, which does not cancel."""
    p = logits.softmax(-1)
    off = -p[:, :, None] * p[:, None, :]
    eye = torch.eye(p.shape[1], dtype=torch.bool)
    return torch.where(eye, -off.masked_fill(eye, 0.0).sum(-1, keepdim=True), off)


@pytest.mark.parametrize("classes", [2, 3, 6, 17])
def test_contrasts_are_orthonormal_and_blind_to_a_shift(classes: int) -> None:
    basis = contrast_basis(classes)
    assert basis.shape == (classes, classes - 1)
    torch.testing.assert_close(basis.T @ basis, torch.eye(classes - 1, dtype=torch.float64), rtol=0, atol=1e-14)
    assert basis.sum(0).abs().max() < 1e-14
    centring = torch.eye(classes, dtype=torch.float64) - 1 / classes
    torch.testing.assert_close(basis @ basis.T, centring, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("classes", CLASSES)
def test_root_gives_the_softmax_curvature(classes: int, kind: str) -> None:
    logits = LOGITS[kind](classes)
    directions, weights = Categorical().root(logits)
    assert directions.shape == (len(logits), classes, classes - 1)
    assert weights.shape == (len(logits), classes - 1)
    assert directions.dtype == weights.dtype == torch.float64
    assert directions.isfinite().all()
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones_like(weights), rtol=0, atol=1e-12)
    assert directions.sum(1).abs().max() < 1e-12
    rows = directions * weights[:, None]
    # Relative to each example's own size: a saturated softmax has a tiny curvature, but not a wrong one.
    expected = _curvature(logits)
    scale = expected.abs().amax((1, 2), keepdim=True).clamp(min=1e-300)
    assert ((rows @ rows.mT - expected) / scale).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_root_is_computed_in_double_precision(dtype: torch.dtype) -> None:
    logits = LOGITS["ordinary"](4).to(dtype)
    for given, double in zip(Categorical().root(logits), Categorical().root(logits.double()), strict=True):
        assert torch.equal(given, double)


def test_root_follows_a_shift_and_a_permutation() -> None:
    logits = LOGITS["ordinary"](4)
    order = torch.tensor([2, 0, 3, 1])

    def curvature(values: Tensor) -> Tensor:
        directions, weights = Categorical().root(values)
        rows = directions * weights[:, None]
        return rows @ rows.mT

    torch.testing.assert_close(curvature(logits + 7.0), curvature(logits), rtol=1e-10, atol=1e-14)
    moved = curvature(logits)[:, order][:, :, order]
    torch.testing.assert_close(curvature(logits[:, order]), moved, rtol=1e-10, atol=1e-14)


def _outer(direction: Tensor, weight: Tensor) -> Tensor:
    assert direction.shape[-1] == weight.shape[-1] == 1
    assert direction.isfinite().all()
    torch.testing.assert_close(direction.norm(dim=1), torch.ones_like(weight), rtol=0, atol=1e-12)
    row = (direction * weight[:, None])[..., 0]
    return row[:, :, None] * row[:, None, :]


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_random_signs_are_unbiased(classes: int, kind: str) -> None:
    """The mean over all 2^(K-1) choices of signs is the curvature, and none of them leaves the contrasts."""
    logits = LOGITS[kind](classes)
    total, choices = torch.zeros(len(logits), classes, classes, dtype=torch.float64), 0
    for signs in itertools.product([0.25, 0.75], repeat=classes - 1):
        uniform = torch.tensor([*signs, 0.5], dtype=torch.float64).expand(len(logits), -1)
        direction, weight = Categorical().one_pass(logits, "rademacher", uniform)
        assert direction.sum(1).abs().max() < 1e-12
        total += _outer(direction, weight)
        choices += 1
    expected = _curvature(logits)
    scale = expected.abs().amax((1, 2), keepdim=True).clamp(min=1e-300)
    assert ((total / choices - expected) / scale).abs().max() < 1e-12


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_sampled_labels_are_unbiased(classes: int, kind: str) -> None:
    """The mean over labels, each as likely as the model has it, is the curvature."""
    logits = LOGITS[kind](classes)
    p = logits.softmax(-1)
    edges = torch.cat([torch.zeros(len(p), 1, dtype=torch.float64), p.cumsum(-1)], dim=1)
    total = torch.zeros(len(logits), classes, classes, dtype=torch.float64)
    for label in range(classes):
        middle = (edges[:, label] + edges[:, label + 1]) / 2
        direction, weight = Categorical().one_pass(logits, "mc", middle[:, None].expand(-1, classes))
        assert direction.sum(1).abs().max() < 1e-12
        # Labels too unlikely to own a piece of [0, 1) can never be drawn.
        possible = edges[:, label + 1] > edges[:, label]
        total += torch.where(possible, p[:, label], 0.0)[:, None, None] * _outer(direction, weight)
    assert (total - _curvature(logits)).abs().max() < 1e-12


@pytest.mark.parametrize("classes", [1, 3])
def test_gaussian_rows(classes: int) -> None:
    logits = torch.randn(4, classes, generator=torch.Generator().manual_seed(0))
    likelihood = Gaussian(0.09)
    expected = (torch.eye(classes, dtype=torch.float64) / 0.09).expand(4, -1, -1)
    directions, weights = likelihood.root(logits)
    rows = directions * weights[:, None]
    torch.testing.assert_close(rows @ rows.mT, expected)
    choices = [
        _outer(*likelihood.one_pass(logits, "rademacher", torch.tensor(signs).expand(4, -1)))
        for signs in itertools.product([0.25, 0.75], repeat=classes)
    ]
    torch.testing.assert_close(torch.stack(choices).mean(0), expected)


def test_gaussian_sampled_rows_have_the_noise_as_their_law() -> None:
    """Quantiles of the uniform become quantiles of N(0, 1 / sigma^2)."""
    uniform = torch.tensor([[0.001], [0.2], [0.5001], [0.975]], dtype=torch.float64)
    direction, weight = Gaussian(4.0).one_pass(torch.zeros(4, 1), "mc", uniform)
    expected = scipy.stats.norm.ppf(uniform.numpy()[:, 0]) / 2
    np.testing.assert_allclose((direction[:, 0, 0] * weight[:, 0]).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("classes", CLASSES)
def test_categorical_log_likelihood(classes: int, kind: str) -> None:
    logits = LOGITS[kind](classes)
    labels = torch.arange(len(logits)) % classes
    expected = scipy.special.log_softmax(logits.numpy(), axis=1)[np.arange(len(labels)), labels.numpy()]
    got = Categorical().log_likelihood(logits, labels)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("classes", [1, 3])
def test_gaussian_log_likelihood(classes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    outputs, targets = torch.randn(2, 5, classes, generator=generator, dtype=torch.float64)
    expected = scipy.stats.norm.logpdf(targets.numpy(), outputs.numpy(), 0.7**0.5).sum(1)
    np.testing.assert_allclose(Gaussian(0.7).log_likelihood(outputs, targets).numpy(), expected, rtol=1e-12)
    if classes == 1:
        np.testing.assert_allclose(Gaussian(0.7).log_likelihood(outputs, targets[:, 0]).numpy(), expected, rtol=1e-12)


BAD_LABELS = {
    "too large": torch.tensor([0, 3]),
    "negative": torch.tensor([0, -1]),
    "ignored index": torch.tensor([-100, 1]),
    "not whole": torch.tensor([0.0, 1.0]),
    "true or false": torch.tensor([True, False]),
    "too few": torch.tensor([1]),
    "a column": torch.tensor([[0], [1]]),
    "one-hot": torch.tensor([[1, 0, 0], [0, 1, 0]]),
}


@pytest.mark.parametrize("kind", BAD_LABELS)
def test_bad_labels_are_refused(kind: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=r"whole numbers from 0 to 2.*check the label column\.$"):
        Categorical().log_likelihood(torch.zeros(2, 3), BAD_LABELS[kind])


def test_integer_labels_of_any_width_are_taken() -> None:
    logits = LOGITS["ordinary"](3)[:2]
    expected = Categorical().log_likelihood(logits, torch.tensor([2, 0]))
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(Categorical().log_likelihood(logits, torch.tensor([2, 0], dtype=dtype)), expected)


def test_gaussian_targets_of_another_number_are_refused() -> None:
    with pytest.raises(LaplaceLoRAError, match="give one per output"):
        Gaussian(1.0).log_likelihood(torch.zeros(2, 3), torch.zeros(2))
