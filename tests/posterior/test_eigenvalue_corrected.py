"""EKFAC: the exact block's own diagonal in the eigenbasis of its Kronecker factors, and no other diagonal is nearer."""

import pytest
import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from posterior.cases import SHAPES, Data, close, dense_likelihood, posterior_of, random_data

DATA = random_data(examples=9)
ONE = torch.ones(1, dtype=torch.float64)
RULES = ("fitted", "expand")


def _blocks(structure: str, data: Data = DATA, **settings: object) -> list[Tensor]:
    posterior, _ = posterior_of(LaplaceConfig(structure=structure, **settings), data, "shared")  # type: ignore[arg-type]
    ends = torch.tensor([shape.size for shape in SHAPES]).cumsum(0).tolist()
    dense = dense_likelihood(posterior, ONE)
    return [dense[a:b, a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


@pytest.mark.parametrize("rank", [None, 1])
@pytest.mark.parametrize("rule", RULES)
def test_every_block_has_the_trace_of_the_exact_one(rule: str, rank: int | None) -> None:
    """Sketched factors included: what is outside them is spread, and nothing is lost."""
    pairs = zip(_blocks("ekfac", kfac=rule, factor_rank=rank), _blocks("exact"), strict=True)
    for corrected, exact in pairs:
        assert float(corrected.trace()) == pytest.approx(float(exact.trace()), rel=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_it_is_the_nearest_diagonal_in_the_basis_of_kron(rule: str) -> None:
    for corrected, kron, exact in zip(
        _blocks("ekfac", kfac=rule), _blocks("kron", kfac=rule), _blocks("exact"), strict=True
    ):
        basis = torch.linalg.eigh(kron + 1e-12 * corrected).eigenvectors
        # Both are diagonal in one basis.
        close(corrected @ kron, kron @ corrected, 1e-8)
        best = torch.linalg.matrix_norm(corrected - exact)
        assert best <= torch.linalg.matrix_norm(kron - exact) + 1e-12
        diagonal = (basis.mT @ corrected @ basis).diagonal()
        for seed in range(20):
            noise = torch.randn(len(diagonal), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            other = basis @ torch.diag(diagonal + 1e-3 * diagonal.max() * noise) @ basis.mT
            assert torch.linalg.matrix_norm(other - exact) > best


def test_it_is_exact_where_kron_is() -> None:
    """One example of one token and one row: the block is a Kronecker product of two outer products."""
    data = random_data(examples=1, tokens=1, rows=1)
    for corrected, exact in zip(_blocks("ekfac", data), _blocks("exact", data), strict=True):
        close(corrected, exact, 1e-9)


def test_without_its_tail_it_has_the_curvature_that_was_seen_by_direction() -> None:
    posterior, precision = posterior_of(LaplaceConfig(structure="ekfac", factor_rank=1), DATA, "shared")
    seen = posterior.without_tail()
    assert float(seen.effective_parameters(precision).sum()) < float(posterior.effective_parameters(precision).sum())
    assert (torch.linalg.eigvalsh(dense_likelihood(posterior, ONE) - dense_likelihood(seen, ONE)) > -1e-9).all()
    whole, _ = posterior_of(LaplaceConfig(structure="ekfac"), DATA, "shared")
    assert whole.without_tail() is whole
