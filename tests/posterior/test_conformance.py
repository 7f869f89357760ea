"""One suite that every posterior structure passes: what it says of itself agrees, however it is asked."""

import itertools
import math

import pytest
import torch
from safetensors.torch import load, save

from laplace_lora.config import LaplaceConfig
from laplace_lora.structures import STRUCTURES
from posterior.cases import (
    CASES,
    GROUPINGS,
    build,
    close,
    dense_covariance,
    dense_likelihood,
    dense_prior,
    fold,
    functional,
    is_truncated,
    merged,
    name_of,
    one_pass,
    posterior_of,
    random_data,
    shapes_of,
    split,
)

pytestmark = pytest.mark.parametrize("config", CASES, ids=name_of)
DATA = random_data()
by_grouping = pytest.mark.parametrize("grouping", GROUPINGS)


def _jacobians(config: LaplaceConfig, batch: int = 3, rows: int = 2, seed: int = 5) -> torch.Tensor:
    """Draw Jacobians (batch, rows, P) of all weights."""
    size = sum(shape.size for shape in shapes_of(config))
    return torch.randn(batch, rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _skip_truncated(config: LaplaceConfig) -> None:
    """What is cut off after every batch depends on the batches; how far is in test_incremental_svd.py."""
    if is_truncated(config):
        pytest.skip("a truncated singular value decomposition depends on batches and order")


@by_grouping
def test_functional_covariance_is_that_of_the_dense_posterior(config: LaplaceConfig, grouping: str) -> None:
    posterior, precision = posterior_of(config, DATA, grouping)
    j = _jacobians(config)
    covariance = functional(posterior, precision, split(j, posterior.shapes))[0]
    assert covariance.dtype == torch.float64
    close(covariance, j @ dense_covariance(posterior, precision) @ j.mT)
    close(covariance, covariance.mT, 1e-13)
    assert (torch.linalg.eigvalsh(covariance) > 0).all()


@by_grouping
def test_likelihood_part_is_positive_and_knows_no_prior(config: LaplaceConfig, grouping: str) -> None:
    posterior, precision = posterior_of(config, DATA, grouping)
    likelihood = dense_likelihood(posterior, precision)
    close(likelihood, likelihood.mT, 1e-10)
    values = torch.linalg.eigvalsh(likelihood)
    assert values.min() > -1e-9 * values.max()
    assert values.max() > 1.0
    close(dense_likelihood(posterior, 7.0 * precision), likelihood)
    close(dense_likelihood(posterior, precision.flip(0)), likelihood)


@by_grouping
def test_log_determinant_is_the_dense_one(config: LaplaceConfig, grouping: str) -> None:
    posterior, precision = posterior_of(config, DATA, grouping)
    covariance, prior = dense_covariance(posterior, precision), dense_prior(posterior, precision)
    expected = -torch.linalg.slogdet(covariance).logabsdet - prior.log().sum()
    assert math.isclose(posterior.log_determinant(precision), float(expected), rel_tol=1e-10)


@by_grouping
def test_effective_parameters_are_the_dense_ones(config: LaplaceConfig, grouping: str) -> None:
    posterior, precision = posterior_of(config, DATA, grouping)
    shares = 1.0 - dense_prior(posterior, precision) * dense_covariance(posterior, precision).diagonal()
    expected = torch.zeros_like(precision)
    for part, shape, group in zip(
        shares.split([shape.size for shape in posterior.shapes]), posterior.shapes, posterior.groups, strict=True
    ):
        assert 0.0 < float(part.sum()) < shape.size
        expected[group] += part.sum()
    close(posterior.effective_parameters(precision), expected, 1e-10)


@by_grouping
def test_effective_parameters_are_the_slope_of_the_log_determinant(config: LaplaceConfig, grouping: str) -> None:
    """d log det(P Delta^-1) / d log delta_g = -gamma_g, which evidence tuning rests on."""
    posterior, precision = posterior_of(config, DATA, grouping)
    gamma, step = posterior.effective_parameters(precision), 1e-4
    for group in range(len(precision)):
        above, below = precision.clone(), precision.clone()
        above[group] *= math.exp(step)
        below[group] *= math.exp(-step)
        slope = (posterior.log_determinant(above) - posterior.log_determinant(below)) / (2 * step)
        assert math.isclose(-slope, float(gamma[group]), rel_tol=1e-6)


@by_grouping
def test_scales_multiply_the_prior(config: LaplaceConfig, grouping: str) -> None:
    posterior, precision = posterior_of(config, DATA, grouping)
    scales = torch.tensor([1e-3, 1.0, 4.0, 1e4], dtype=torch.float64)
    jacobians = split(_jacobians(config), posterior.shapes)
    at_once = functional(posterior, precision, jacobians, scales)
    assert at_once.shape == (4, 3, 2, 2)
    for scale, covariance in zip(scales, at_once, strict=True):
        close(covariance, functional(posterior, scale * precision, jacobians)[0])
        close(functional(posterior, precision, jacobians, scale[None])[0], covariance)


@by_grouping
def test_samples_have_the_posterior_covariance(config: LaplaceConfig, grouping: str) -> None:
    """Whitened samples are standard normal: each entry of their second moment is within 5 standard errors."""
    posterior, precision = posterior_of(config, DATA, grouping)
    count = 20_000
    samples = posterior.sample(precision, count, torch.Generator().manual_seed(1))
    assert [tuple(draw.shape) for draw in samples] == [(count, s.out_features, s.in_features) for s in posterior.shapes]
    flat = torch.cat([draw.double().flatten(1) for draw in samples], dim=1)
    factor = torch.linalg.cholesky(dense_covariance(posterior, precision))
    white = torch.linalg.solve_triangular(factor, flat.T, upper=False)
    assert white.mean(dim=1).abs().max() < 5 / math.sqrt(count)
    deviation = (white @ white.T / count - torch.eye(len(white), dtype=torch.float64)).abs()
    assert deviation.max() < 5 * math.sqrt(2 / count)
    assert (deviation - deviation.diagonal().diag()).max() < 5 / math.sqrt(count)


def test_samples_follow_from_their_seed(config: LaplaceConfig) -> None:
    posterior, precision = posterior_of(config, DATA)
    first, again, other = (posterior.sample(precision, 2, torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_goes_through_a_file_bit_for_bit(config: LaplaceConfig, dtype: torch.dtype) -> None:
    posterior, precision = posterior_of(config, DATA.to(dtype))
    tensors = posterior.tensors()
    assert all(any(name.startswith(f"{shape.name}.") for shape in posterior.shapes) for name in tensors)
    assert posterior.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert type(posterior).stored(posterior.shapes, tensors) == {name: tuple(t.shape) for name, t in tensors.items()}
    for name, tensor in tensors.items():
        if name.endswith(posterior.spectra):
            assert tensor.dtype == torch.float64
            assert (tensor >= 0).all()
    read = {name: tensor.clone() for name, tensor in load(save(tensors)).items()}
    again = STRUCTURES[config.structure].posterior.from_tensors(posterior.shapes, read)
    again.assign_groups(posterior.groups)
    restored = again.tensors()
    assert set(restored) == set(tensors)
    for name, tensor in tensors.items():
        assert restored[name].dtype == tensor.dtype
        assert torch.equal(restored[name], tensor)
    jacobians = [j.to(dtype) for j in split(_jacobians(config), posterior.shapes)]
    assert torch.equal(functional(again, precision, jacobians), functional(posterior, precision, jacobians))
    assert again.log_determinant(precision) == posterior.log_determinant(precision)
    draws = [p.sample(precision, 2, torch.Generator().manual_seed(0)) for p in (posterior, again)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_halves_merge_into_the_whole(config: LaplaceConfig, order: tuple[int, int]) -> None:
    """Pass by pass: what a second one finds depends on what the first one ended with, of all data."""
    _skip_truncated(config)
    halves = [DATA.take(part) for part in (range(3), range(3, 7))]
    joined, precision = build(config, merged(config, [halves[order[0]], halves[order[1]]]))
    whole, _ = posterior_of(config, DATA)
    close(dense_likelihood(joined, precision), dense_likelihood(whole, precision))


def test_a_half_that_was_merged_in_is_left_as_it_was(config: LaplaceConfig) -> None:
    _skip_truncated(config)
    first, second = DATA.take(range(3)), DATA.take(range(3, 7))
    shapes = shapes_of(config)
    mine, its = (one_pass(STRUCTURES[config.structure].curvature(shapes, config), part) for part in (first, second))
    mine.merge(its)
    ended = its if (after := its.next_pass()) is None else one_pass(after, second)
    rest, precision = build(config, ended)
    alone, _ = posterior_of(config, second)
    close(dense_likelihood(rest, precision), dense_likelihood(alone, precision))


def test_merging_nothing_changes_nothing(config: LaplaceConfig) -> None:
    joined, precision = build(config, merged(config, [DATA.take([]), DATA]))
    whole, _ = posterior_of(config, DATA)
    close(dense_likelihood(joined, precision), dense_likelihood(whole, precision), 1e-12)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_and_order_do_not_matter(config: LaplaceConfig, size: int) -> None:
    _skip_truncated(config)
    whole, precision = posterior_of(config, DATA)
    shuffled = DATA.take([4, 1, 6, 0, 2, 5, 3])
    again, _ = build(config, fold(config, shuffled, batch_size=size))
    close(dense_likelihood(again, precision), dense_likelihood(whole, precision))
    assert math.isclose(again.log_determinant(precision), whole.log_determinant(precision), rel_tol=1e-10)


def test_padding_does_not_matter(config: LaplaceConfig) -> None:
    """The longest example of a batch decides how much padding the others carry, and of what value."""
    wide = random_data()
    for name, x in wide.inputs.items():
        wide.inputs[name] = torch.where(wide.mask[..., None], x, torch.full_like(x, 1e3))
    whole, precision = posterior_of(config, DATA)
    again, _ = posterior_of(config, wide)
    close(dense_likelihood(again, precision), dense_likelihood(whole, precision))


@by_grouping
def test_without_curvature_the_prior_is_left(config: LaplaceConfig, grouping: str) -> None:
    posterior, precision = posterior_of(config, DATA.without_curvature(), grouping)
    close(dense_covariance(posterior, precision), (1 / dense_prior(posterior, precision)).diag(), 1e-14)
    assert posterior.log_determinant(precision) == 0.0
    assert torch.equal(posterior.effective_parameters(precision), torch.zeros_like(precision))
    samples = posterior.sample(precision, 5, torch.Generator().manual_seed(0))
    assert all(draw.isfinite().all() for draw in samples)


def test_every_example_twice_doubles_the_likelihood_part(config: LaplaceConfig) -> None:
    once, precision = posterior_of(config, DATA)
    twice, _ = posterior_of(config, DATA.take([*range(7), *range(7)]))
    close(dense_likelihood(twice, precision), 2 * dense_likelihood(once, precision))


def test_float32_gradients_agree_with_float64(config: LaplaceConfig) -> None:
    single, precision = posterior_of(config, DATA.to(torch.float32))
    double, _ = posterior_of(config, DATA)
    jacobians = split(_jacobians(config), double.shapes)
    expected = functional(double, precision, jacobians)
    close(functional(single, precision, [j.float() for j in jacobians]), expected, 2e-6)
    close(torch.tensor(single.log_determinant(precision)), torch.tensor(double.log_determinant(precision)), 1e-6)
    close(single.effective_parameters(precision), double.effective_parameters(precision), 1e-6)


def test_a_prior_of_any_size_gives_finite_positive_variances(config: LaplaceConfig) -> None:
    posterior, precision = posterior_of(config, DATA)
    jacobians = split(_jacobians(config), posterior.shapes)
    variances = []
    for factor in (1e-6, 1e-3, 1.0, 1e3, 1e6):
        covariance = functional(posterior, factor * precision, jacobians)[0]
        assert covariance.isfinite().all()
        assert torch.linalg.eigvalsh(covariance).min() > 0
        variances.append(covariance.diagonal(dim1=1, dim2=2))
    assert all((later < earlier).all() for earlier, later in itertools.pairwise(variances))
