"""kron_low_rank against dense float64 oracles: the sketch, the factors of what it leaves, the Gaussian they make."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature import KroneckerLowRankCurvature
from laplace_lora.curvature.sketch import random_basis
from laplace_lora.errors import LaplaceLoRAError, MemoryLimitError, PosteriorFileError
from laplace_lora.jacobians import SiteGradient
from laplace_lora.matrices import MatrixShape
from laplace_lora.persistence.checks import check_tensors
from laplace_lora.posterior import KroneckerLowRankPosterior, eigen, low_rank_plus
from laplace_lora.structures import STRUCTURES
from posterior.cases import close, dense_covariance, dense_prior, functional, split

NARROW = (MatrixShape("a", "one", 2, 5), MatrixShape("b", "one", 4, 2), MatrixShape("head", "head", 3, 4, True))
# Wider than twice kron's default rank: sketched on either side.
WIDE = (MatrixShape("a", "one", 2, 140), MatrixShape("b", "one", 133, 2), MatrixShape("head", "head", 2, 4, True))
GROUPS = {"shared": (0, 0, 0), "by role": (0, 1, 2)}
Rows = list[list[tuple[Tensor, Tensor]]]


def _gradients(
    shapes: Sequence[MatrixShape], examples: int, rows: int = 2, tokens: int = 3, size: float = 1.0, decay: float = 0.0
) -> Rows:
    """Draw inputs (N, T, in) and gradients (N, T, out) by row and matrix; later coordinates smaller, if wished."""
    generator = torch.Generator().manual_seed(4)

    def normal(width: int) -> Tensor:
        drawn = torch.randn(examples, tokens, width, generator=generator, dtype=torch.float64)
        return drawn * torch.arange(1, width + 1, dtype=torch.float64) ** -decay

    inputs = [normal(shape.in_features) for shape in shapes]
    return [
        [(x, size * normal(shape.out_features)) for x, shape in zip(inputs, shapes, strict=True)] for _ in range(rows)
    ]


def _fold(
    shapes: Sequence[MatrixShape],
    data: Rows,
    structure: str = "kron_low_rank",
    dtype: torch.dtype = torch.float64,
    some: slice = slice(None),
    **settings: Any,
) -> Any:
    curvature = STRUCTURES[structure].curvature(shapes, LaplaceConfig(structure=structure, **settings))
    for row, at_matrices in enumerate(data):
        for index, (x, g) in enumerate(at_matrices):
            x, g = x[some].to(dtype), g[some].to(dtype)
            curvature.update(SiteGradient(index, row, x, g, None, False), torch.ones(len(x), dtype=dtype))
    curvature.end_batch()
    return curvature


def _posterior(curvature: Any, groups: Sequence[int] = (0, 0, 0)) -> Any:
    kind = STRUCTURES[curvature.config.structure].posterior
    posterior = kind.from_statistics(curvature.shapes, curvature.finalise(), curvature.dtype)
    posterior.assign_groups(groups)
    return posterior


def _dense_rows(data: Rows) -> Tensor:
    """Return Phi (M, P), one Jacobian after the other."""
    rows = []
    for at_matrices in data:
        rows += [torch.cat([(g[n].T @ x[n]).flatten() for x, g in at_matrices]) for n in range(len(at_matrices[0][0]))]
    return torch.stack(rows)


def _sketched(dense: Tensor, omega: Tensor) -> Tensor:
    products = dense @ omega
    return products @ torch.linalg.pinv(omega.T @ products, hermitian=True) @ products.T


def _wide(factor: Tensor) -> Tensor:
    """Return a factor as `kron` keeps it: whole, or 64 directions and an even tail."""
    if len(factor) <= 128:
        return factor
    known = _sketched(factor, random_basis(len(factor), 64, torch.float64, "cpu"))
    return known + (factor - known).trace() / len(factor) * torch.eye(len(factor), dtype=torch.float64)


def _dense_likelihood(shapes: Sequence[MatrixShape], data: Rows, rank: int) -> Tensor:
    """Return W W^T + blockdiag(L (x) R), the factors summed over the remainder's entries."""
    phi = _dense_rows(data)
    ggn = phi.T @ phi
    config = LaplaceConfig(structure="kron_low_rank", factor_rank=rank)
    omega = torch.cat(KroneckerLowRankCurvature(shapes, config).joint._basis_like(ggn))
    known = _sketched(ggn, omega)
    blocks, start = [], 0
    for shape in shapes:
        end = start + shape.size
        block = (ggn - known)[start:end, start:end]
        block = block.view(shape.out_features, shape.in_features, shape.out_features, shape.in_features)
        left = sum(block[:, i, :, i] for i in range(shape.in_features))
        right = sum(block[o, :, o, :] for o in range(shape.out_features))
        assert isinstance(left, Tensor)
        assert isinstance(right, Tensor)
        blocks.append(torch.kron(_wide(left), _wide(right / left.trace())))
        start = end
    return known + torch.block_diag(*blocks)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("rank", [1, 3, 9])
@pytest.mark.parametrize("shapes", [NARROW, WIDE], ids=["whole", "sketched"])
def test_everything_is_that_of_the_dense_posterior(
    shapes: tuple[MatrixShape, ...], rank: int, groups: tuple[int, ...]
) -> None:
    """Covariances, determinant, gamma: of the definition, written out in loops."""
    data = _gradients(shapes, examples=40 if shapes is WIDE else 12)
    posterior = _posterior(_fold(shapes, data, factor_rank=rank), groups)
    precision = torch.tensor([0.3, 2.0, 40.0][: 1 + max(groups)], dtype=torch.float64)
    prior = dense_prior(posterior, precision)
    dense = _dense_likelihood(shapes, data, rank) + prior.diag()
    expected = torch.linalg.inv(dense)
    covariance = dense_covariance(posterior, precision)
    close(covariance, expected, 1e-8)
    determinant = torch.linalg.slogdet(dense).logabsdet - prior.log().sum()
    assert math.isclose(posterior.log_determinant(precision), float(determinant), rel_tol=1e-9)
    shares = (1.0 - prior * expected.diagonal()).split([shape.size for shape in shapes])
    gamma = torch.zeros_like(precision)
    for share, group in zip(shares, groups, strict=True):
        gamma[group] += share.sum()
    close(posterior.effective_parameters(precision), gamma, 1e-8)


@pytest.mark.parametrize("rank", [1, 9])
@pytest.mark.parametrize("shapes", [NARROW, WIDE], ids=["whole", "sketched"])
def test_every_matrix_has_the_exact_trace(shapes: tuple[MatrixShape, ...], rank: int) -> None:
    data = _gradients(shapes, examples=40 if shapes is WIDE else 12)
    posterior = _posterior(_fold(shapes, data, factor_rank=rank))
    one = torch.ones(1, dtype=torch.float64)
    likelihood = torch.linalg.inv(dense_covariance(posterior, one)).diagonal() - 1.0
    sizes = [shape.size for shape in shapes]
    for found, exact in zip(likelihood.split(sizes), _dense_rows(data).square().sum(0).split(sizes), strict=True):
        assert math.isclose(float(found.sum()), float(exact.sum()), rel_tol=1e-9)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("rank", [20, 25, 400])
@pytest.mark.parametrize("shapes", [NARROW, WIDE], ids=["whole", "sketched"])
def test_it_is_the_exact_posterior_where_it_has_as_many_directions_as_the_data(
    shapes: tuple[MatrixShape, ...], rank: int, groups: tuple[int, ...]
) -> None:
    """Ten examples of two rows. The factors of what is left, rounding, are 0: K-FAC adds nothing of its own.

    With exactly as many directions as rows the sketch divides by small numbers, and misses more than rounding.
    """
    data = _gradients(shapes, examples=10)
    posterior = _posterior(_fold(shapes, data, factor_rank=rank), groups)
    for name, tensor in posterior.tensors().items():
        if rank > 20 and name.endswith(posterior.spectra):
            assert not tensor.any(), name
        if name.endswith("left_eigenvalues"):
            assert tensor.max() < 1e-7
    # Missed curvature of 1e-9 counts against the weakest prior, 3e-5.
    tolerance = 1e-4 if rank == 20 else 1e-8
    exact = _posterior(_fold(shapes, data, "exact"), groups)
    phi = _dense_rows(data)
    for scale in (1e-4, 1.0, 1e4):
        precision = scale * torch.tensor([0.3, 2.0, 40.0][: 1 + max(groups)], dtype=torch.float64)
        dense = torch.linalg.inv(phi.T @ phi + dense_prior(posterior, precision).diag())
        close(dense_covariance(posterior, precision), dense_covariance(exact, precision), tolerance)
        close(dense_covariance(posterior, precision), dense, tolerance)
        assert math.isclose(posterior.log_determinant(precision), exact.log_determinant(precision), rel_tol=tolerance)
        close(posterior.effective_parameters(precision), exact.effective_parameters(precision), tolerance)


@pytest.mark.parametrize("shapes", [NARROW, WIDE], ids=["whole", "sketched"])
def test_it_is_the_exact_posterior_in_float32_too(shapes: tuple[MatrixShape, ...]) -> None:
    data = _gradients(shapes, examples=10)
    posterior = _posterior(_fold(shapes, data, dtype=torch.float32, factor_rank=30))
    for name, tensor in posterior.tensors().items():
        if name.endswith(posterior.spectra):
            assert not tensor.any(), name
    exact = _posterior(_fold(shapes, data, "exact"))
    for delta in (1e-2, 1.0, 100.0):
        precision = torch.tensor([delta], dtype=torch.float64)
        close(dense_covariance(posterior, precision), dense_covariance(exact, precision), 1e-4)


@pytest.mark.parametrize("shapes", [NARROW, WIDE], ids=["whole", "sketched"])
def test_without_directions_it_is_kron(shapes: tuple[MatrixShape, ...]) -> None:
    data = _gradients(shapes, examples=20)
    curvature = _fold(shapes, data)
    for product in curvature.joint.products:
        product.zero_()
    found, kron = _posterior(curvature), _posterior(_fold(shapes, data, "kron"))
    for name, tensor in kron.tensors().items():
        assert torch.equal(found.tensors()[name], tensor), name
    assert not any(factor.any() for factor in found.factors)
    precision = torch.tensor([0.5], dtype=torch.float64)
    close(dense_covariance(found, precision), dense_covariance(kron, precision), 1e-12)
    assert math.isclose(found.log_determinant(precision), kron.log_determinant(precision), rel_tol=1e-12)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("delta", [1e-4, 1e-2, 1.0, 1e2, 1e4])
def test_no_digits_are_lost_to_cancellation(delta: float, groups: tuple[int, ...]) -> None:
    """Curvature of 1e7 and more: variances up to 1e11 below the prior's, and covariances that stay positive."""
    data = _gradients(WIDE, examples=40, size=1e3, decay=0.5)
    posterior = _posterior(_fold(WIDE, data, factor_rank=30), groups)
    precision = delta * torch.tensor([1.0, 100.0, 0.01][: 1 + max(groups)], dtype=torch.float64)
    prior = dense_prior(posterior, precision)
    generator = torch.Generator().manual_seed(2)
    j = _dense_rows(data)[:4].view(2, 2, -1) / 1e3
    j = j + 1e-9 * torch.randn(j.shape, generator=generator, dtype=torch.float64)
    covariance = functional(posterior, precision, split(j, WIDE))[0]
    # Scaled by the prior, the dense matrix is as well conditioned as it can be.
    root = prior.rsqrt()
    scaled = root[:, None] * _dense_likelihood(WIDE, data, 30) * root + torch.eye(len(prior), dtype=torch.float64)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(scaled), (root * j).flatten(0, 1).T, upper=False)
    white = white.T.view(2, 2, -1)
    expected = white @ white.mT
    ratio = float(((j.square() / prior).sum(-1) / covariance.diagonal(dim1=1, dim2=2)).max())
    assert ratio > (1e4 if delta < 1e3 else 1e2)
    close(covariance, expected, 1e-5)
    assert (torch.linalg.eigvalsh(covariance) > 0).all()


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_float32_agrees_with_float64_far_below_the_prior(groups: tuple[int, ...]) -> None:
    data = _gradients(WIDE, examples=40, size=30.0, decay=0.5)
    single, double = (
        _posterior(_fold(WIDE, data, dtype=d, factor_rank=30), groups) for d in (torch.float32, torch.float64)
    )
    j = [part.float() for part in split(_dense_rows(data)[:4].view(2, 2, -1), WIDE)]
    for delta in (1e-2, 1.0, 1e2):
        precision = delta * torch.tensor([1.0, 100.0, 0.01][: 1 + max(groups)], dtype=torch.float64)
        expected = functional(double, precision, [part.double() for part in j])
        close(functional(single, precision, j), expected, 2e-3)


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("shapes", [NARROW, WIDE], ids=["whole", "sketched"])
def test_sampling_is_a_linear_map_whose_square_is_the_covariance(
    shapes: tuple[MatrixShape, ...], groups: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are M xi, xi white. Unit vectors in the place of xi give M, and M M^T has to be P^-1: no statistics."""
    posterior = _posterior(_fold(shapes, _gradients(shapes, examples=40), factor_rank=5), groups)
    precision = torch.tensor([0.3, 2.0, 40.0][: 1 + max(groups)], dtype=torch.float64)
    weights = sum(shape.size for shape in shapes)
    count = weights + 5
    taken = 0

    def unit_vectors(size: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal taken
        wanted = math.prod(size[1:])
        taken += wanted
        return torch.eye(count, dtype=torch.float64)[:, taken - wanted : taken].reshape(tuple(size))

    for module in (eigen, low_rank_plus):
        monkeypatch.setattr(module, "standard_normal", unit_vectors)
    draws = posterior.sample(precision, count, torch.Generator())
    assert taken == count
    linear = torch.cat([draw.flatten(1) for draw in draws], dim=1)
    close(linear.T @ linear, dense_covariance(posterior, precision), 1e-9)


def test_halves_of_sketched_data_merge_into_the_whole() -> None:
    data = _gradients(WIDE, examples=20)
    merged, rest = (_fold(WIDE, data, some=some, factor_rank=6) for some in (slice(8), slice(8, None)))
    merged.merge(rest)
    precision = torch.tensor([0.5], dtype=torch.float64)
    whole = dense_covariance(_posterior(_fold(WIDE, data, factor_rank=6)), precision)
    close(dense_covariance(_posterior(merged), precision), whole, 1e-9)


def test_without_tail_only_the_guess_is_left_out() -> None:
    posterior = _posterior(_fold(WIDE, _gradients(WIDE, examples=40), factor_rank=5), GROUPS["by role"])
    bare = posterior.without_tail()
    precision = torch.tensor([0.3, 2.0, 40.0], dtype=torch.float64)
    assert isinstance(bare, KroneckerLowRankPosterior)
    assert bare.groups == posterior.groups
    assert (bare.effective_parameters(precision) <= posterior.effective_parameters(precision)).all()
    assert bare.effective_parameters(precision).sum() < posterior.effective_parameters(precision).sum()
    difference = dense_covariance(bare, precision) - dense_covariance(posterior, precision)
    assert torch.linalg.eigvalsh(difference).min() > -1e-10
    assert bare.without_tail() is bare


def test_more_memory_than_allowed_is_refused_and_said_what_for() -> None:
    config = LaplaceConfig(structure="kron_low_rank", factor_rank=12, memory_limit_bytes=1_000)
    curvature = KroneckerLowRankCurvature((MatrixShape("first", "first", 3, 4),), config)
    # 16 bytes for each of 12 x 12 pairs and each weight and 24 for copies; 8 for each entry of both factors.
    with pytest.raises(MemoryLimitError, match=r"needs 6152 bytes: 5952 for 12 directions of 12 weights and 200 for"):
        curvature.check_memory(2, None)


@pytest.mark.parametrize("kfac", ["expand", "reduce"])
def test_factors_that_do_not_know_what_is_left_are_refused(kfac: Any) -> None:
    with pytest.raises(LaplaceLoRAError, match=f"kfac='{kfac}' do not know; use kfac='fitted', or structure='kron'"):
        LaplaceConfig(structure="kron_low_rank", kfac=kfac)


def _spoilt() -> list[tuple[str, Any]]:
    """Return what can be wrong with a file: a message, and a change to its tensors."""
    return [
        ("lacks b.factor", lambda t: t.pop("b.factor")),
        ("lacks a.right_tail", lambda t: t.pop("a.right_tail")),
        ("b.factor has shape", lambda t: t.update({"b.factor": t["b.factor"][:, :-1]})),
        ("a.factor has shape", lambda t: t.update({name: t[name][:, :0] for name in t if name.endswith(".factor")})),
        ("a.left_eigenvectors has shape", lambda t: t.update({"a.left_eigenvectors": t["a.left_eigenvectors"][:1]})),
        ("a.left_eigenvalues holds negative", lambda t: t["a.left_eigenvalues"].neg_()),
        ("head.factor holds NaN", lambda t: t["head.factor"].fill_(math.nan)),
        ("has no place for a.diagonal", lambda t: t.update({"a.diagonal": torch.ones(280, dtype=torch.float64)})),
    ]


@pytest.mark.parametrize(("message", "spoil"), _spoilt(), ids=[message for message, _ in _spoilt()])
def test_damaged_files_are_refused(message: str, spoil: Any) -> None:
    posterior = _posterior(_fold(WIDE, _gradients(WIDE, examples=40), factor_rank=5))
    tensors = {name: tensor.clone() for name, tensor in posterior.tensors().items()}
    check_tensors(KroneckerLowRankPosterior, WIDE, tensors, "file")
    spoil(tensors)
    with pytest.raises(PosteriorFileError, match=message):
        check_tensors(KroneckerLowRankPosterior, WIDE, tensors, "file")
