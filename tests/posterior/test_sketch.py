"""Sketches of wide Kronecker factors: against numpy, against whole factors, and in any order."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature import KroneckerCurvature
from laplace_lora.curvature import sketch as sketches
from laplace_lora.curvature.sketch import SketchedFactor
from laplace_lora.eigenbases import SpectralFactor
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.jacobians import SiteGradient
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior import KroneckerPosterior
from posterior.cases import close, dense_likelihood
from posterior.sketching import SPECTRA, as_matrix, oracle_sketch, posterior_of_rows, rows_with, sketch_of, variance

WIDTH = 90
RANKS = (4, 8, 16, 32)
# By prior precision: most that variances may be off on average at the largest rank, as a logarithm. Under a weak prior
# what the sketch missed is most of the precision.
ALLOWED = {1e-3: 0.3, 1e-2: 0.2, 1e-1: 0.1}
over_spectra = pytest.mark.parametrize("spectrum", SPECTRA)


@over_spectra
@pytest.mark.parametrize("rank", RANKS)
def test_sketch_is_the_nystrom_approximation_and_an_even_tail(spectrum: str, rank: int) -> None:
    rows = rows_with(spectrum, WIDTH, 200)
    matrix = (rows.T @ rows).numpy()
    omega = sketches.random_basis(WIDTH, rank, torch.float64, "cpu").numpy()
    expected = oracle_sketch(matrix, omega)
    tail = (np.trace(matrix) - np.trace(expected)) / WIDTH
    found = as_matrix(sketch_of(rows, rank).spectrum())
    close(found, torch.from_numpy(expected + tail * np.eye(WIDTH)), 1e-7)
    assert math.isclose(float(found.trace()), np.trace(matrix), rel_tol=1e-12)


@over_spectra
@pytest.mark.parametrize("rank", RANKS)
def test_sketch_without_its_tail_is_below_the_factor(spectrum: str, rank: int) -> None:
    """And with all that it misses of the trace in every direction it is above: both bounds are of matrices."""
    rows = rows_with(spectrum, WIDTH, 200)
    matrix = rows.T @ rows
    bare = as_matrix(dataclasses.astuple(SpectralFactor(*sketch_of(rows, rank).spectrum()).without_tail()))
    missed = matrix.trace() - bare.trace()
    assert torch.linalg.eigvalsh(matrix - bare).min() > -1e-12
    assert torch.linalg.eigvalsh(bare + missed * torch.eye(WIDTH) - matrix).min() > -1e-12


@pytest.mark.parametrize("rank", RANKS)
def test_factor_of_no_larger_rank_is_found_exactly(rank: int) -> None:
    rows = rows_with("slow: 1 / i", WIDTH, rank)
    close(as_matrix(sketch_of(rows, rank).spectrum()), rows.T @ rows, 1e-9)


@over_spectra
@pytest.mark.parametrize("rank", RANKS)
def test_float32_vectors_move_neither_tail_nor_variance_by_much(spectrum: str, rank: int) -> None:
    """Rounding is enlarged where the sketch divides by small numbers, most where a spectrum decays fast."""
    rows = rows_with(spectrum, 400, 600) * 30**0.5
    jacobians = torch.randn(20, 3, 400, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    double, single = (posterior_of_rows(r, 3, rank) for r in (rows, rows.float()))
    tails = [p.right[0].tail for p in (single, double)]
    missed = double.right[0].tail * 400
    if missed > 1e-3:  # of a trace of 1
        assert abs(float(tails[0] / tails[1]) - 1) < 0.05
    ratio = variance(single, jacobians.float(), 1e-3) / variance(double, jacobians, 1e-3)
    assert float(ratio.log().abs().max()) < 0.03


@over_spectra
@pytest.mark.parametrize("delta", ALLOWED)
@pytest.mark.parametrize("flip", [False, True], ids=["lora_A", "lora_B"])
def test_variance_is_bounded_by_what_is_known_of_the_factor(spectrum: str, delta: float, flip: bool) -> None:
    """Below: all of the missed trace in every direction. Above: none of it. Between: the whole factor, and the tail."""
    rows = rows_with(spectrum, WIDTH, 90) * 30**0.5
    jacobians = torch.randn(20, 3, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    jacobians = jacobians.mT if flip else jacobians
    exact = variance(posterior_of_rows(rows, 3, WIDTH, flip), jacobians, delta)
    errors = []
    for rank in RANKS:
        posterior = posterior_of_rows(rows, 3, rank, flip)
        above = variance(posterior.without_tail(), jacobians, delta)
        below = variance(_with_all_missed(posterior, flip), jacobians, delta)
        with_tail = variance(posterior, jacobians, delta)
        slack = 1e-9 * exact
        assert (below <= exact + slack).all()
        assert (exact <= above + slack).all()
        assert (below <= with_tail + slack).all()
        assert (with_tail <= above + slack).all()
        errors.append(float((with_tail / exact).log().abs().mean()))
    assert errors[-1] < ALLOWED[delta]
    if spectrum.startswith("fast"):
        assert all(later < earlier for earlier, later in itertools.pairwise(errors))


def _with_all_missed(posterior: KroneckerPosterior, flip: bool) -> KroneckerPosterior:
    """Put all of the trace that the wide factor's sketch missed into every direction."""
    side = posterior.left if flip else posterior.right
    (wide,) = side
    missed = wide.tail * len(wide.vectors)
    changed = SpectralFactor(wide.without_tail().values + missed, wide.vectors, missed)
    left, right = ([changed], posterior.right) if flip else (posterior.left, [changed])
    return KroneckerPosterior(posterior.shapes, left, right)


@pytest.mark.parametrize("size", [(7, 9), (9, 7), (8, 8)])
def test_both_sides_sketched_are_the_kronecker_product_of_both_factors(size: tuple[int, int]) -> None:
    """Four parts with four kinds of eigenvalues, against the product written out."""
    generator = torch.Generator().manual_seed(1)

    def factor(width: int, rank: int, tail: float) -> SpectralFactor:
        basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q[:, :rank]
        values = torch.rand(rank, generator=generator, dtype=torch.float64) + 1.0
        return SpectralFactor(values, basis, torch.tensor(tail, dtype=torch.float64))

    left, right = factor(size[0], 3, 0.4), factor(size[1], 2, 0.7)
    posterior = KroneckerPosterior((MatrixShape("m", "m", *size),), [left], [right])
    dense = [as_matrix((f.values, f.vectors, f.tail)) for f in (left, right)]
    close(dense_likelihood(posterior, torch.ones(1, dtype=torch.float64)), torch.kron(*dense), 1e-12)
    expected = torch.linalg.slogdet(torch.kron(*dense) / 0.3 + torch.eye(math.prod(size))).logabsdet
    assert math.isclose(
        posterior.log_determinant(torch.tensor([0.3], dtype=torch.float64)), float(expected), rel_tol=1e-12
    )


def test_sums_of_different_precision_merge_alike_in_both_orders() -> None:
    single, double = (sketch_of(rows_with("slow: 1 / i", WIDTH, 40).to(d), 8) for d in (torch.float32, torch.float64))
    orders = []
    for first, second in ((single, double), (double, single)):
        total = SketchedFactor(WIDTH, 8)
        total.merge(first)
        total.merge(second)
        orders.append(as_matrix(total.spectrum()))
    close(orders[0], orders[1], 1e-12)


def test_products_of_no_sum_of_squares_are_refused() -> None:
    factor = sketch_of(rows_with("slow: 1 / i", WIDTH, 40), 8)
    factor.products.neg_()
    with pytest.raises(LaplaceLoRAError, match="please report it"):
        factor.spectrum()


def test_nothing_is_added_by_an_empty_batch() -> None:
    factor = sketch_of(rows_with("slow: 1 / i", WIDTH, 40), 8)
    before = as_matrix(factor.spectrum())
    factor.add(torch.zeros(0, WIDTH, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))
    assert torch.equal(as_matrix(factor.spectrum()), before)


def test_effective_parameters_without_the_tail_are_fewer() -> None:
    posterior = posterior_of_rows(rows_with("slow: 1 / i", WIDTH, 60) * 30**0.5, 3, 8)
    one = torch.ones(1, dtype=torch.float64)
    bare = posterior.without_tail()
    assert float(bare.effective_parameters(one)) < float(posterior.effective_parameters(one))
    assert bare.log_determinant(one) < posterior.log_determinant(one)
    assert bare.without_tail() is bare
    whole = posterior_of_rows(rows_with("slow: 1 / i", WIDTH, 60), 3, WIDTH)
    assert whole.without_tail() is whole


def test_parts_merge_in_any_order_to_the_whole() -> None:
    parts = [sketch_of(rows_with("slow: 1 / i", WIDTH, 40, seed), 8) for seed in range(4)]
    expected = as_matrix(sketch_of(torch.cat([rows_with("slow: 1 / i", WIDTH, 40, s) for s in range(4)]), 8).spectrum())

    def merged(*factors: SketchedFactor) -> SketchedFactor:
        total = SketchedFactor(WIDTH, 8)
        for factor in factors:
            total.merge(factor)
        return total

    for order in itertools.permutations(range(4)):
        first, second, third, fourth = (parts[i] for i in order)
        for tree in (merged(first, second, third, fourth), merged(merged(first, second), merged(third, fourth))):
            close(as_matrix(tree.spectrum()), expected, 1e-9)


def test_weights_are_those_of_the_examples() -> None:
    stack = rows_with("slow: 1 / i", WIDTH, 40).view(8, 5, WIDTH).mT
    weights = torch.linspace(0.1, 2.0, 8, dtype=torch.float64)
    weighted, scaled = SketchedFactor(WIDTH, 8), SketchedFactor(WIDTH, 8)
    weighted.add(stack, weights)
    scaled.add(stack * weights.sqrt()[:, None, None])
    close(as_matrix(weighted.spectrum()), as_matrix(scaled.spectrum()), 1e-10)
    assert math.isclose(weighted.trace(), scaled.trace(), rel_tol=1e-12)


def test_no_curvature_and_almost_none() -> None:
    values, vectors, tail = sketch_of(torch.zeros(3, WIDTH), 8).spectrum()
    assert not values.any()
    assert not tail.any()
    close(vectors.mT @ vectors, torch.eye(8, dtype=torch.float64), 1e-12)
    tiny, plain = (sketch_of(rows_with("slow: 1 / i", WIDTH, 40) * scale, 8).spectrum()[0] for scale in (1e-70, 1.0))
    close(tiny / 1e-140, plain, 1e-6)


@pytest.mark.parametrize("kfac", ["expand", "reduce"])
def test_inputs_that_matrices_share_are_sketched_once(kfac: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k and v see the same vectors, o sees others of the same width, and in the next batch all are new."""
    shapes = tuple(MatrixShape(f"{name}.lora_A", name, 2, WIDTH) for name in "qkvo")
    config = LaplaceConfig(kfac=kfac, factor_rank=8)
    products = 0
    plain = SketchedFactor.part

    def counting(self: SketchedFactor, *args: object) -> object:
        nonlocal products
        products += 1
        return plain(self, *args)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    monkeypatch.setattr(SketchedFactor, "part", counting)
    generator = torch.Generator().manual_seed(0)
    together = KroneckerCurvature(shapes, config)
    apart = [KroneckerCurvature((shape,), config) for shape in shapes]
    for batch in range(2):
        shared, own = draw(3, 5, WIDTH), draw(3, 5, WIDTH)
        mask = torch.arange(5)[None] < torch.tensor([[5], [3], [1]]) if batch else None
        gradients = [
            SiteGradient(index, 0, own if index == 3 else shared.clone(), draw(3, 5, 2), mask, False)
            for index in range(4)
        ]
        before = products
        for gradient in gradients:
            together.update(gradient, torch.ones(3))
        together.end_batch()
        assert products - before == 2
        for index, gradient in enumerate(gradients):
            apart[index].update(dataclasses.replace(gradient, index=0), torch.ones(3))
            apart[index].end_batch()
    assert not together._latest
    statistics = together.finalise()
    for index, alone in enumerate(apart):
        for name, tensors in alone.finalise().items():
            assert torch.equal(tensors[0], statistics[name][index])


def test_posterior_and_sums_grow_with_the_width_and_not_its_square() -> None:
    rank = 16

    def sizes(width: int) -> tuple[int, int]:
        shapes = (MatrixShape("m.lora_A", "m", 4, width), MatrixShape("m.lora_B", "m", width, 4))
        curvature = KroneckerCurvature(shapes, LaplaceConfig(factor_rank=rank))
        for index, shape in enumerate(shapes):
            gradient = SiteGradient(
                index, 0, torch.randn(2, 3, shape.in_features), torch.randn(2, 3, shape.out_features), None, False
            )
            curvature.update(gradient, torch.ones(2))
        sketched = [curvature.right[0], curvature.left[1]]
        assert all(isinstance(factor, SketchedFactor) for factor in sketched)
        held = sum(factor.products.nbytes for factor in sketched)
        posterior = KroneckerPosterior.from_statistics(shapes, curvature.finalise(), curvature.dtype)
        return held, posterior.nbytes

    for width in (100, 200, 400):
        held, stored = sizes(width)
        assert held == 2 * 8 * width * rank
        # Wide eigenvectors in float32, and m and 4 eigenvalues, 4 x 4 eigenvectors and a tail for every matrix.
        assert stored == 2 * (4 * width * rank + 8 * rank + 8 + 8 * 4 + 4 * 4 * 4)
