"""Binned spectra against the covariances themselves, at priors over many decades, for every structure."""

import pytest
import torch

from laplace_lora.config import LaplaceConfig
from laplace_lora.errors import UnsupportedInputError
from laplace_lora.posterior import Grid, Spectrum
from laplace_lora.posterior.spectrum import DECADES, NODES
from posterior.cases import CASES, GROUPINGS, functional, name_of, posterior_of, random_data, shapes_of, split

DATA = random_data()
#: Largest relative error of a term between two nodes.
Q = 10.0 ** (DECADES / (NODES - 1))
BOUND = ((Q**0.5 - 1.0) / (Q**0.5 + 1.0)) ** 2


def _jacobians(config: LaplaceConfig, batch: int = 3, rows: int = 2) -> torch.Tensor:
    size = sum(shape.size for shape in shapes_of(config))
    return torch.randn(batch, rows, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def _spectrum(posterior, jacobians) -> Spectrum:
    grid = posterior.grid()
    accumulator = posterior.spectral_accumulator(grid)
    for row in range(jacobians[0].shape[1]):
        for index, jacobian in enumerate(jacobians):
            accumulator.add(index, row, jacobian[:, row])
    found = accumulator.covariance()
    return Spectrum(grid.nodes, found.unflatten(0, (-1, len(grid.nodes))))


def test_the_bound_is_as_stated() -> None:
    assert BOUND < 2.31e-3


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("config", CASES, ids=name_of)
def test_covariances_at_every_prior(config: LaplaceConfig, grouping: str) -> None:
    posterior, precision = posterior_of(config, DATA, grouping)
    jacobians = split(_jacobians(config), posterior.shapes)
    if not posterior.has_spectrum:
        with pytest.raises(UnsupportedInputError, match=r"use (prior_groups='global', or )?another structure\.$"):
            posterior.grid()
        return
    spectrum = _spectrum(posterior, jacobians)
    for scale in (1e-4, 1e-2, 1.0, 10.0, 1e3, 1e6, 1e9):
        expected = functional(posterior, scale * precision, jacobians)[0]
        found = spectrum.covariance(scale * precision)
        size = expected.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
        assert ((found - expected).abs() <= BOUND * size).all()
        assert (torch.linalg.eigvalsh(found) > -1e-9 * size[:, 0]).all()


@pytest.mark.parametrize("config", CASES, ids=name_of)
def test_without_curvature_only_the_prior_counts(config: LaplaceConfig) -> None:
    posterior, precision = posterior_of(config, DATA.without_curvature(), "shared")
    if not posterior.has_spectrum:
        pytest.skip("no spectrum serves all priors")
    jacobians = split(_jacobians(config), posterior.shapes)
    spectrum = _spectrum(posterior, jacobians)
    flat = _jacobians(config)
    torch.testing.assert_close(spectrum.covariance(precision), flat @ flat.mT / precision, rtol=1e-10, atol=1e-12)


def test_exact_at_nodes_and_in_both_limits() -> None:
    grid = Grid.below(7.0)
    inside = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 7.0
    values = torch.cat([grid.nodes, inside])
    upper, share = grid.shares(values)
    assert (share >= 0.0).all()
    assert (share <= 1.0).all()

    def at(delta: float) -> torch.Tensor:
        low, high = grid.nodes[upper - 1], grid.nodes[upper]
        return (1.0 - share) / (low + delta) + share / (high + delta)

    nodes = len(grid.nodes)
    for delta in (1e-3, 1.0, 1e3):
        torch.testing.assert_close(at(delta)[:nodes], 1.0 / (grid.nodes + delta), rtol=1e-12, atol=0.0)
        assert ((at(delta) * (values + delta) - 1.0).abs() <= BOUND).all()
    for delta in (1e-14, 1e14):
        torch.testing.assert_close(at(delta), 1.0 / (values + delta), rtol=1e-3 * BOUND, atol=0.0)
