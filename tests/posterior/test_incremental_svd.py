"""The paper's low-rank factors: against a plain loop in numpy, and where they go wrong."""

import numpy as np
import pytest
import torch

from laplace_lora.curvature.incremental_svd import TruncatedFactor
from posterior.cases import close
from posterior.sketching import as_matrix, rows_with, sketch_of

WIDTH, RANK = 30, 5


def _loop(batches: list[np.ndarray]) -> np.ndarray:
    """Keep B, put the next batch beside it, and cut to the leading singular vectors."""
    root = np.zeros((WIDTH, RANK))
    for rows in batches:
        left, singular, _ = np.linalg.svd(np.concatenate([root, rows.T], axis=1), full_matrices=False)
        root = left[:, :RANK] * singular[:RANK]
    return root @ root.T


@pytest.mark.parametrize("size", [2, 7, 40])
def test_agrees_with_a_loop(size: int) -> None:
    rows = rows_with("slow: 1 / i", WIDTH, 40)
    factor = TruncatedFactor(WIDTH, RANK)
    for batch in rows.split(size):
        factor.add(batch[:, :, None])
    close(as_matrix(factor.spectrum()), torch.from_numpy(_loop([b.numpy() for b in rows.split(size)])), 1e-10)
    assert abs(factor.trace() - float(rows.square().sum())) < 1e-12


def test_is_exact_where_the_rank_suffices() -> None:
    rows = rows_with("slow: 1 / i", WIDTH, RANK)
    factor = TruncatedFactor(WIDTH, RANK)
    for batch in rows.split(2):
        factor.add(batch[:, :, None])
    close(as_matrix(factor.spectrum()), rows.T @ rows, 1e-10)


def test_weights_and_merging() -> None:
    rows = rows_with("slow: 1 / i", WIDTH, 12).view(6, 2, WIDTH)
    weights = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    halves = [TruncatedFactor(WIDTH, 12) for _ in range(2)]
    for half, part in zip(halves, (slice(0, 3), slice(3, 6)), strict=True):
        half.add(rows[part].mT, weights[part])
    halves[0].merge(halves[1])
    close(as_matrix(halves[0].spectrum()), torch.einsum("bni,bnj,b->ij", rows, rows, weights), 1e-10)


def test_batches_change_it_and_it_only_understates() -> None:
    """What a sketch of the same rank does not suffer from."""
    rows = rows_with("very slow: 1 / sqrt(i)", WIDTH, 200)
    found = []
    for size in (1, 200):
        factor = TruncatedFactor(WIDTH, RANK)
        for batch in rows.split(size):
            factor.add(batch[:, :, None])
        found.append(as_matrix(factor.spectrum()))
        assert torch.linalg.eigvalsh(rows.T @ rows - found[-1]).min() > -1e-12
    assert (found[0] - found[1]).abs().max() > 0.01 * found[1].abs().max()
    sketch = as_matrix(sketch_of(rows, RANK).spectrum())
    assert abs(float(sketch.trace()) - 1.0) < 1e-12
    assert float(found[1].trace()) < 0.5
