"""Sketched Kronecker factors from a model's pass to its predictions: where exact, in any order, and with a warning."""

import json
import math
import re
import warnings
from pathlib import Path

import peft
import pytest
import torch

import oracles
from engine.support import close, fitted, setting
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from laplace_lora.curvature.sketch import SketchedFactor
from laplace_lora.posterior import KroneckerPosterior
from laplace_lora.prior import TailCheck
from tiny_models import Example, batches, collate, random_examples, tiny_bert, tiny_llama

RULES = ("fitted", "expand", "reduce", "official")
MODELS = {"bert": tiny_bert, "llama": tiny_llama}


def fitted_quietly(model: peft.PeftModel, train: list[Example]) -> LaplaceLoRA:
    """Fit with too small a rank and keep the warning to oneself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fitted(model, train, factor_rank=1, prior_precision=0.01)


def _saved(la: LaplaceLoRA, folder: Path) -> Path:
    la.save_pretrained(folder)
    return folder


def _sketched(la: LaplaceLoRA) -> int:
    posterior = la.posterior
    assert isinstance(posterior, KroneckerPosterior)
    return sum(factor.outside > 0 for factor in (*posterior.left, *posterior.right))


@pytest.mark.parametrize("targets", ["two", "all-linear"])
@pytest.mark.parametrize("name", MODELS)
def test_is_exact_where_the_factors_have_no_larger_rank(name: str, targets: str) -> None:
    """Six examples, one row each, r = 1: no factor has more than six directions, of 16 and more."""
    options = {} if targets == "two" else {"targets": targets}
    model, train, test = MODELS[name](2, r=1, **options), random_examples(6, 2), random_examples(4, 2, seed=77)
    dense = oracles.dense_posterior(model, train, "kron", "fitted", True)
    j = torch.stack([oracles.joint_jacobian(model, example, dense.blocks) for example in test])
    j = j - j.mean(1, keepdim=True)
    la = fitted(model, train, size=4, factor_rank=7, prior_precision=0.3)
    assert _sketched(la) >= 7
    close(la.predict(collate(test)).covariance, j @ dense.covariance(0.3) @ j.mT, 1e-7)
    check = la.tail_check
    assert check is None or math.isclose(check.ratio, 1.0, rel_tol=1e-7)


@pytest.mark.parametrize("kfac", RULES)
def test_rank_as_large_as_the_widest_is_the_whole_factor(kfac: str) -> None:
    model, train, test = setting("llama-all-linear")
    whole, default = (fitted(model, train, kfac=kfac, factor_rank=rank) for rank in (10_000, None))
    assert whole.tail_check is None
    assert torch.equal(whole.predict(collate(test)).covariance, default.predict(collate(test)).covariance)


@pytest.mark.parametrize("kfac", RULES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:wide Kronecker factors")
def test_batches_order_padding_and_size_of_the_data(name: str, kfac: str) -> None:
    model, train, test = setting(name)
    settings = {"kfac": kfac, "factor_rank": 3, "prior_precision": 0.3}
    reference = fitted(model, train, size=len(train), **settings)
    assert _sketched(reference) >= 7
    expected = reference.predict(collate(test)).covariance
    sides = ("left", "right") if name == "llama" else ("right",)
    for examples, size in ((train, 1), (train[::-1], 2), (train[3:] + train[:3], 4)):
        for side in sides:
            again = fitted(model, examples, size=size, side=side, **settings)
            close(again.predict(collate(test)).covariance, expected, 1e-8)
    twice = fitted(model, train + train, size=5, **{**settings, "prior_precision": 0.6})
    close(twice.predict(collate(test)).covariance, expected / 2, 1e-8)


@pytest.mark.filterwarnings("ignore:wide Kronecker factors")
def test_evidence_and_samples_know_of_the_tail() -> None:
    """The determinant of the evidence against that of the dense covariance, that of unit Jacobians."""
    model, train, _ = setting("bert")
    la = fitted(model, train, factor_rank=2, prior_precision=0.3)
    posterior, precision = la.posterior, torch.tensor([0.3], dtype=torch.float64)
    total = sum(shape.size for shape in posterior.shapes)
    accumulator = posterior.accumulator(precision)
    for index, part in enumerate(torch.eye(total, dtype=torch.float64).split([s.size for s in posterior.shapes], 1)):
        shape = posterior.shapes[index]
        for row, unit in enumerate(part):
            accumulator.add(index, row, unit.view(1, shape.out_features, shape.in_features))
    covariance = accumulator.covariance()[0, 0]
    expected = -torch.linalg.slogdet(covariance).logabsdet - total * math.log(0.3)
    assert math.isclose(posterior.log_determinant(precision), float(expected), rel_tol=1e-9)
    draws = posterior.sample(precision, 4000, torch.Generator().manual_seed(0))
    flat = torch.cat([draw.flatten(1) for draw in draws], dim=1)
    spread = (flat.square().mean(dim=0) / covariance.diagonal()).log().abs().max()
    assert float(spread) < 5 * math.sqrt(2 / 4000)


def test_too_small_a_rank_is_warned_about_once_with_the_remedy() -> None:
    model, train, _ = setting("bert")
    with pytest.warns(UserWarning, match=r"factor_rank=4\)") as caught:
        la = fitted(model, train, factor_rank=1, prior_precision=0.01)
    assert len(caught) == 1
    assert "effective parameters" in str(caught[0].message)
    assert caught[0].filename == __file__.replace("test_sketched", "support")
    check = la.tail_check
    assert check is not None
    assert check.ratio > 1.25
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="wide Kronecker")
        la.tune_prior("evidence")
    assert f"{la.tail_check.without_tail:.1f} without" in la.summary()


def test_both_counts_are_saved(tmp_path: Path) -> None:
    model, train, test = setting("bert")
    la = fitted(model, train, factor_rank=6, prior_precision=2.0)
    check = la.tail_check
    assert check is not None
    assert 1.0 < check.ratio < 1.25
    la.save_pretrained(tmp_path)
    document = json.loads((tmp_path / "posterior_config.json").read_text())
    assert document["effective_parameters"] == {"with_tail": check.with_tail, "without_tail": check.without_tail}
    assert document["config"]["factor_rank"] == 6
    again = LaplaceLoRA.from_pretrained(model, tmp_path)
    assert again.tail_check == check
    poor = LaplaceLoRA.from_pretrained(model, _saved(fitted_quietly(model, train), tmp_path / "poor"))
    with pytest.warns(UserWarning, match="effective parameters"):  # nobody was told of it yet
        poor.tune_prior(("validation", batches(train, 3)))
    assert torch.equal(again.predict(collate(test)).covariance, la.predict(collate(test)).covariance)
    assert again.summary() == la.summary()


def test_tail_check_of_nothing() -> None:
    assert TailCheck(0.0, 0.0).ratio == 1.0
    assert TailCheck(0.0, 0.0).warning(8) is None
    assert TailCheck(1.0, 0.0).ratio == math.inf
    assert TailCheck(12.4, 10.0).warning(8) is None
    assert "factor_rank=32" in str(TailCheck(12.6, 10.0).warning(8))
    # Where the rank of the sketches is not the setting, as with kron_low_rank.
    assert re.search(r"\(rank 64\).*factor_rank=400\)", str(TailCheck(12.6, 10.0).warning(64, 100)))


def test_ranks_of_directions_and_of_factors() -> None:
    """factor_rank is the number of directions of all weights together; factors beside them are as kron's default."""
    for given, directions in ((None, 64), (7, 7), (500, 500)):
        config = LaplaceConfig(structure="kron_low_rank", factor_rank=given)
        assert (config.rank, config.sketch_rank, config.widest_whole_factor) == (directions, 64, 128)
    assert (LaplaceConfig(structure="low_rank").rank, LaplaceConfig().rank) == (200, 64)


@pytest.mark.parametrize("structure", ["diag", "exact", "low_rank", "isotropic"])
@pytest.mark.parametrize("kfac", ["expand", "reduce", "official"])
def test_rules_of_factors_are_refused_where_there_are_none(structure: str, kfac: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=rf"kfac='{kfac}' is a rule of .* has none; leave it out, or use"):
        LaplaceConfig(structure=structure, kfac=kfac)  # type: ignore[arg-type]


@pytest.mark.parametrize("structure", ["diag", "exact"])
def test_rank_of_a_structure_without_factors_is_refused(structure: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=r"is a number of directions, and structure=.* has none; leave it out"):
        LaplaceConfig(structure=structure, factor_rank=3)  # type: ignore[arg-type]
    for wrong in (0, 8.0, True, "8"):
        with pytest.raises(LaplaceLoRAError, match="give an int >= 1"):
            LaplaceConfig(factor_rank=wrong)  # type: ignore[arg-type]


def test_papers_factors_overstate_variance_and_depend_on_batches() -> None:
    """A truncated singular value decomposition loses what it cuts; the sketch of the same rank does not."""
    model, train, test = setting("llama")
    settings = {"prior_precision": 0.1}
    exact = fitted(model, train, **settings).predict(collate(test)).covariance.diagonal(dim1=1, dim2=2)
    found = [
        fitted(model, train, size=size, structure="kron_svd", factor_rank=1, **settings)
        .predict(collate(test))
        .covariance.diagonal(dim1=1, dim2=2)
        for size in (1, 6)
    ]
    assert all((variances > exact).all() for variances in found)
    cut = fitted(model, train, structure="kron_svd", factor_rank=1, **settings)
    assert cut.tail_check is None
    assert "wider than 1 are cut to as many directions" in cut.summary()
    assert (found[0] / found[1] - 1).abs().max() > 1e-3
    assert LaplaceConfig(structure="kron_svd").sketch_rank == 10
    whole = fitted(model, train, structure="kron_svd", factor_rank=100, **settings)
    close(whole.predict(collate(test)).covariance.diagonal(dim1=1, dim2=2), exact, 1e-12)


def test_sums_of_unlike_models_are_never_merged() -> None:
    first, second = SketchedFactor(20, 3), SketchedFactor(20, 4)
    with pytest.raises(AssertionError):
        first.merge(second)


@pytest.mark.parametrize("kfac", RULES)
@pytest.mark.filterwarnings("ignore:wide Kronecker factors")
def test_float32_models_agree_with_float64(kfac: str) -> None:
    covariances = []
    for dtype in (torch.float32, torch.float64):
        model = tiny_bert(3, dtype)
        train, test = random_examples(6), random_examples(4, seed=77)
        la = LaplaceLoRA(model, LaplaceConfig(progress=False, kfac=kfac, factor_rank=3)).fit(batches(train, 4))
        covariances.append(la.predict(collate(test)).covariance)
    close(covariances[0], covariances[1], 1e-3)
