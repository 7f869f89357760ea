"""Where Kronecker factors must EQUAL the exact block of the generalised Gauss-Newton matrix, and where they must not.

Two cases (Eschenhagen et al., NeurIPS 2023, for the first): a deep linear network whose output is a mean over
positions, with Gaussian noise; and one example of one position with two classes, whatever the network.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.low_rank import LowRankCurvature
from laplace_lora.errors import MemoryLimitError
from laplace_lora.jacobians import SiteGradient
from laplace_lora.likelihoods import Categorical, Gaussian, Likelihood
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior import Posterior
from laplace_lora.structures import STRUCTURES
from posterior.cases import close, dense_likelihood

RULES = ("fitted", "reduce", "expand")


class Pooled(nn.Module):
    """Two linear layers at every position, a mean over real positions, and a linear readout."""

    def __init__(self, outputs: int, nonlinear: bool, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(4, 3, bias=bias)
        self.second = nn.Linear(3, 5, bias=bias)
        self.readout = nn.Linear(5, outputs, bias=False)
        self.bend = nn.Tanh() if nonlinear else nn.Identity()
        self.double()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bend(self.second(self.bend(self.first(x))))
        return self.readout((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def _gradients(model: Pooled, x: Tensor, mask: Tensor, likelihood: Likelihood) -> tuple[list[SiteGradient], Tensor]:
    """Differentiate the outputs along the likelihood's directions, at both layers."""
    layers, seen = [model.first, model.second], []
    handles = [layer.register_forward_hook(lambda _, args, out: seen.append((args[0], out))) for layer in layers]
    outputs = model(x, mask)
    for handle in handles:
        handle.remove()
    directions, weights = likelihood.root(outputs.detach())
    gradients = []
    for row in range(directions.shape[-1]):
        at_layers = torch.autograd.grad(outputs, [out for _, out in seen], directions[..., row], retain_graph=True)
        for index, ((inputs, _), g) in enumerate(zip(seen, at_layers, strict=True)):
            has_bias = layers[index].bias is not None
            gradients.append(SiteGradient(index, row, inputs.detach(), g, mask, has_bias))
    return gradients, weights


def _blocks(
    structure: str, kfac: str, shapes: Sequence[MatrixShape], gradients: Sequence[SiteGradient], weights: Tensor
) -> list[Tensor]:
    """Fold gradients and return the likelihood part's diagonal blocks."""
    parts = STRUCTURES[structure]
    curvature = parts.curvature(shapes, LaplaceConfig(structure=structure, kfac=kfac))  # type: ignore[arg-type]
    for gradient in gradients:
        curvature.update(gradient, weights[:, gradient.row])
    posterior = parts.posterior.from_statistics(shapes, curvature.finalise(), curvature.dtype)
    dense = dense_likelihood(posterior, torch.ones(len(shapes), dtype=torch.float64))
    ends = torch.tensor([shape.size for shape in shapes]).cumsum(0).tolist()
    return [dense[end - s.size : end, end - s.size : end] for end, s in zip(ends, shapes, strict=True)]


def _case(
    examples: int, tokens: int, outputs: int, likelihood: Likelihood, nonlinear: bool, bias: bool
) -> tuple[tuple[MatrixShape, ...], list[SiteGradient], Tensor]:
    shapes = (MatrixShape("first", "first", 3, 4 + bias), MatrixShape("second", "second", 5, 3 + bias))
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(examples, tokens, 4, generator=generator, dtype=torch.float64)
    mask = torch.arange(tokens)[None] < torch.randint(1, tokens + 1, (examples, 1), generator=generator)
    gradients, weights = _gradients(Pooled(outputs, nonlinear, bias), x, mask, likelihood)
    return shapes, gradients, weights


def _trace_error(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return max(abs(float(a.trace() / b.trace()) - 1) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 6])
@pytest.mark.parametrize("kfac", RULES)
def test_linear_network_with_gaussian_noise_and_mean_pooling(kfac: str, tokens: int, bias: bool) -> None:
    """fitted and reduce at any number of positions, expand at one."""
    case = _case(8, tokens, 3, Gaussian(0.3), nonlinear=False, bias=bias)
    exact, factored = _blocks("exact", "fitted", *case), _blocks("kron", kfac, *case)
    if kfac != "expand" or tokens == 1:
        for block, expected in zip(factored, exact, strict=True):
            close(block, expected, 1e-11)
    else:
        for block, expected in zip(factored, exact, strict=True):
            assert (block - expected).abs().max() > 1e-2 * expected.abs().max()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kfac", RULES)
def test_one_example_of_one_position_with_two_classes(kfac: str, bias: bool) -> None:
    case = _case(1, 1, 2, Categorical(), nonlinear=True, bias=bias)
    for block, expected in zip(_blocks("kron", kfac, *case), _blocks("exact", "fitted", *case), strict=True):
        close(block, expected, 1e-11)


@pytest.mark.parametrize("kfac", RULES)
def test_nowhere_else_by_accident(kfac: str) -> None:
    """Two examples of a network with a bend in it: no Kronecker product is the exact block."""
    case = _case(2, 3, 2, Categorical(), nonlinear=True, bias=False)
    for block, expected in zip(_blocks("kron", kfac, *case), _blocks("exact", "fitted", *case), strict=True):
        assert (block - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("classes", [2, 4])
def test_fitted_diag_and_exact_have_one_trace(classes: int) -> None:
    """The trace of every block is that of the exact one: the sum of squared rows."""
    case = _case(6, 4, classes, Categorical(), nonlinear=True, bias=True)
    exact = _blocks("exact", "fitted", *case)
    assert _trace_error(_blocks("kron", "fitted", *case), exact) < 1e-11
    for diagonal, expected in zip(_blocks("diag", "fitted", *case), exact, strict=True):
        close(diagonal, expected.diagonal().diag(), 1e-11)


def test_exact_is_the_sum_of_outer_products_across_matrices() -> None:
    shapes, gradients, weights = _case(3, 4, 3, Categorical(), nonlinear=True, bias=True)
    rows: dict[tuple[int, int], list[Tensor]] = {}
    for gradient in gradients:
        x, g = gradient.tokens()
        for example in range(len(x)):
            j = sum(torch.outer(g[example, t], x[example, t]) for t in range(x.shape[1]))
            assert isinstance(j, Tensor)
            row = weights[example, gradient.row] * j.flatten()
            rows.setdefault((example, gradient.row), []).append(row)
    stacked = torch.stack([torch.cat(parts) for parts in rows.values()])
    curvature = STRUCTURES["exact"].curvature(shapes, LaplaceConfig(structure="exact"))
    for gradient in gradients:
        curvature.update(gradient, weights[:, gradient.row])
    posterior = STRUCTURES["exact"].posterior.from_statistics(shapes, curvature.finalise(), curvature.dtype)
    close(dense_likelihood(posterior, torch.ones(2, dtype=torch.float64)), stacked.T @ stacked, 1e-11)


def _rows(parts: str, config: LaplaceConfig) -> tuple[Posterior, Tensor]:
    """Fold one case into a structure; return its posterior, and the full GGN of the case."""
    shapes, gradients, weights = _case(5, 4, 3, Categorical(), nonlinear=True, bias=True)
    found = []
    for structure, settings in ((parts, config), ("exact", LaplaceConfig(structure="exact"))):
        curvature = STRUCTURES[structure].curvature(shapes, settings)
        for gradient in gradients:
            curvature.update(gradient, weights[:, gradient.row])
        found.append(STRUCTURES[structure].posterior.from_statistics(shapes, curvature.finalise(), curvature.dtype))
    return found[0], dense_likelihood(found[1], torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("rank", [10, 15, 200])
def test_low_rank_is_the_full_ggn_where_it_has_as_many_directions_as_the_data(rank: int) -> None:
    """Five examples of three classes: ten rows."""
    posterior, exact = _rows("low_rank", LaplaceConfig(structure="low_rank", factor_rank=rank))
    assert posterior.tensors()["first.factor"].shape == (15, 10)
    close(dense_likelihood(posterior, torch.ones(2, dtype=torch.float64)), exact, 1e-9)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_low_rank_is_nystroms_approximation_and_the_rest_of_the_diagonal(rank: int) -> None:
    config = LaplaceConfig(structure="low_rank", factor_rank=rank)
    posterior, exact = _rows("low_rank", config)
    omega = torch.cat(LowRankCurvature(posterior.shapes, config)._basis_like(exact))
    close(omega.T @ omega, torch.eye(rank, dtype=torch.float64), 1e-12)
    products = exact @ omega
    expected = products @ torch.linalg.inv(omega.T @ products) @ products.T
    expected += (exact - expected).diagonal().diag()
    found = dense_likelihood(posterior, torch.ones(2, dtype=torch.float64))
    close(found, expected, 1e-9)
    close(found.diagonal(), exact.diagonal(), 1e-9)


def test_low_rank_refuses_more_memory_than_allowed_and_says_how_much() -> None:
    config = LaplaceConfig(structure="low_rank", memory_limit_bytes=1_000)
    curvature = STRUCTURES["low_rank"].curvature((MatrixShape("first", "first", 3, 4),), config)
    # 12 weights, 12 directions: 16 bytes for each pair and each weight, and float64 copies of the largest matrix.
    with pytest.raises(MemoryLimitError, match=r"needs 5952 bytes for 12 directions of 12 weights; the limit is 1000"):
        curvature.check_memory(2, None)
