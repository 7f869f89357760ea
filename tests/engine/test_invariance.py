"""The posterior of N examples does not depend on how they were batched, padded or ordered."""

import itertools
import math

import pytest
import torch

import oracles
from engine.support import CASES, STRUCTURES, close, fitted, setting
from laplace_lora import LaplaceLoRA, LaplaceLoRAError
from tiny_models import collate, random_examples, tiny_bert

# (structure, kfac, fisher): every combination that the library accepts for three classes.
ALL = [(structure, kfac, "exact") for structure, kfac in CASES] + [
    (structure, kfac, fisher) for (structure, kfac), fisher in itertools.product(CASES[:4], ["rademacher", "mc"])
]


def _assert_same(left: LaplaceLoRA, right: LaplaceLoRA, test: dict[str, torch.Tensor], rtol: float = 1e-9) -> None:
    close(left.predict(test).covariance, right.predict(test).covariance, rtol)
    assert math.isclose(float(left.log_marginal_likelihood()), float(right.log_marginal_likelihood()), rel_tol=1e-10)


@pytest.mark.parametrize(("structure", "kfac", "fisher"), ALL)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_batch_size_and_order(name: str, structure: str, kfac: str, fisher: str) -> None:
    model, train, test = setting(name)
    settings = {"structure": structure, "kfac": kfac, "fisher": fisher, "prior_precision": 0.3, "seed": 5}
    reference = fitted(model, train, size=len(train), **settings)
    for examples, size in ((train, 1), (train, 4), (train[::-1], 2), (train[3:] + train[:3], len(train))):
        _assert_same(fitted(model, examples, size=size, **settings), reference, collate(test))


@pytest.mark.parametrize(("structure", "kfac", "fisher"), ALL)
def test_padding_side_of_a_causal_model(structure: str, kfac: str, fisher: str) -> None:
    model, train, test = setting("llama")
    settings = {"structure": structure, "kfac": kfac, "fisher": fisher, "prior_precision": 0.3}
    reference = fitted(model, train, size=3, **settings)
    _assert_same(fitted(model, train, size=5, side="left", **settings), reference, collate(test))


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_how_far_a_batch_is_padded(name: str) -> None:
    model, train, test = setting(name)
    batch = collate(train)
    wider = {
        key: value if key == "labels" else torch.cat([value, torch.zeros(len(value), 5, dtype=value.dtype)], dim=1)
        for key, value in batch.items()
    }
    for kfac in ("fitted", "expand", "reduce", "official"):
        la, reference = fitted(model, train, kfac=kfac), fitted(model, train, kfac=kfac)
        la.fit([wider])
        _assert_same(la, reference, collate(test))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_predictions_do_not_depend_on_their_batch(name: str, structure: str) -> None:
    model, train, test = setting(name)
    la = fitted(model, train, structure=structure)
    together = la.predict(collate(test))
    for row, example in enumerate(test):
        alone = la.predict(collate([example]))
        close(alone.covariance[0], together.covariance[row], 1e-9)
        torch.testing.assert_close(alone.probabilities[0], together.probabilities[row], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("structure", "kfac", "fisher"), ALL)
def test_every_example_twice_is_twice_the_information(structure: str, kfac: str, fisher: str) -> None:
    """If G becomes 2 G then (2 G + 2 delta)^-1 is half of (G + delta)^-1, and the log-determinant stays."""
    model, train, test = setting()
    settings = {"structure": structure, "kfac": kfac, "fisher": fisher}
    one = fitted(model, train, prior_precision=0.4, **settings)
    two = fitted(model, train[2:] + train + train[:2], size=5, prior_precision=0.8, **settings)
    close(two.predict(collate(test)).covariance, one.predict(collate(test)).covariance / 2, 1e-9)
    among = [block for block in oracles.blocks(model) if structure != "last_layer" or block.head]
    norm = sum(float(oracles.weights(model, block).square().sum()) for block in among)
    fit = sum(
        float(oracles.log_likelihood(oracles.logits(model, example).detach(), example["labels"])) for example in train
    )
    difference = float(two.log_marginal_likelihood()) - float(one.log_marginal_likelihood())
    assert math.isclose(difference, fit - 0.5 * 0.4 * norm, rel_tol=1e-8)


@pytest.mark.parametrize("fisher", ["rademacher", "mc"])
def test_the_seed_decides(fisher: str) -> None:
    model, train, test = setting()

    def covariance(seed: int) -> torch.Tensor:
        return fitted(model, train, fisher=fisher, seed=seed).predict(collate(test)).covariance

    first, again, other = covariance(1), covariance(1), covariance(2)
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-3 * first.abs().max()


@pytest.mark.parametrize("structure", ["kron", "diag"])
@pytest.mark.parametrize("fisher", ["rademacher", "mc"])
def test_one_pass_fisher_is_unbiased(fisher: str, structure: str) -> None:
    """At a large delta twice the evidence's penalty is tr(G) / delta, so its mean over seeds must be the exact one."""
    model, train = tiny_bert(4, targets=["value"], r=1), random_examples(5, 4)
    delta = 1e4

    def trace(**settings: object) -> float:
        la = fitted(model, train, size=5, structure=structure, prior_precision=delta, **settings)
        return float(la.log_marginal_likelihood())

    exact = trace(fisher="exact")
    draws = torch.tensor([trace(fisher=fisher, seed=seed) for seed in range(60)], dtype=torch.float64)
    error = draws.std() / math.sqrt(len(draws))
    norm = sum(float(oracles.weights(model, block).square().sum()) for block in oracles.blocks(model))
    fit = sum(
        float(oracles.log_likelihood(oracles.logits(model, example).detach(), example["labels"])) for example in train
    )
    penalty = fit - 0.5 * delta * norm - exact
    assert 0 < error < 0.15 * penalty
    assert abs(draws.mean() - exact) < 4 * error


def test_left_padding_of_an_encoder_is_refused() -> None:
    model, train, test = setting("bert")
    with pytest.raises(LaplaceLoRAError, match="left"):
        fitted(model, train, side="left")
    la = fitted(model, train)
    with pytest.raises(LaplaceLoRAError, match="left"):
        la.predict(collate(test, "left"))
    same_length = [example for example in random_examples(20) if len(example["input_ids"]) == 5]
    assert len(same_length) > 1
    la.predict(collate(same_length, "left"))


def test_a_refused_batch_is_refused_wherever_it_comes() -> None:
    model, train, _ = setting("bert")
    la = fitted(model, train)
    with pytest.raises(LaplaceLoRAError, match="left"):
        la.fit([collate(train[:3]), collate(train[3:], "left")])
