"""Sampled adapters follow the posterior, and PEFT can load them."""

import peft
import pytest
import torch
from torch import Tensor

import oracles
from engine.support import CASES, STRUCTURES, fitted, oracle, setting, spread
from tiny_models import collate, random_examples, tiny_bert, tiny_llama

COUNT = 500


def _vector(state: dict[str, Tensor], among: tuple[oracles.Block, ...]) -> Tensor:
    """Lay out one adapter state dict as the oracle lays out its weights."""
    pieces = []
    for block in among:
        matrix = state[f"{block.name}.weight"]
        if block.bias is not None:
            matrix = torch.cat([matrix, state[f"{block.name}.bias"][:, None]], dim=1)
        pieces.append(matrix.double().flatten())
    return torch.cat(pieces)


def _assert_gaussian(samples: Tensor, mean: Tensor, precision: Tensor) -> None:
    """Whiten the samples: z = C^T (theta - theta*), P = C C^T, must be independent and of variance 1."""
    n, size = samples.shape
    z = (samples - mean) @ torch.linalg.cholesky(precision)
    # Five standard errors, and seven for the largest of up to 10^5 entries.
    assert abs(float(z.square().mean()) - 1) < 5 * (2 / (n * size)) ** 0.5
    assert z.mean(0).abs().max() < 6 / n**0.5
    moments = z.T @ z / n
    deviation = moments - torch.eye(size, dtype=torch.float64)
    assert deviation.diagonal().abs().max() < 7 * (2 / n) ** 0.5
    assert (deviation - torch.diag(deviation.diagonal())).abs().max() < 7 / n**0.5
    # The largest singular value of a whitened Gaussian sample is known as well (Marchenko and Pastur).
    edge = (1 + (size / n) ** 0.5) ** 2
    assert torch.linalg.eigvalsh(moments)[-1] < 1.15 * edge


@pytest.mark.parametrize(
    ("name", "structure", "kfac"),
    [("bert", *case) for case in CASES] + [("llama", structure, "fitted") for structure in STRUCTURES],
)
def test_covariance_of_samples(name: str, structure: str, kfac: str) -> None:
    model, train, _ = setting(name)
    posterior = oracle(name, 3, structure, kfac)
    by_group, deltas = spread(posterior.blocks, "matrix")
    la = fitted(model, train, structure=structure, kfac=kfac, prior_groups="matrix", prior_precision=by_group)
    samples = torch.stack([_vector(state, posterior.blocks) for state in la.sample(COUNT, seed=11)])
    _assert_gaussian(samples, posterior.mean, posterior.precision(deltas))


def test_exact_samples_where_the_data_outnumber_the_weights() -> None:
    model = tiny_bert(3, targets=["query"], r=1)
    train = random_examples(100, seed=3)
    posterior = oracles.dense_posterior(model, train, "exact")
    la = fitted(model, train, size=25, structure="exact", prior_precision=0.1)
    samples = torch.stack([_vector(state, posterior.blocks) for state in la.sample(COUNT, seed=2)])
    _assert_gaussian(samples, posterior.mean, posterior.precision(0.1))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_repeatable_without_touching_the_global_state(structure: str) -> None:
    model, train, _ = setting()
    la = fitted(model, train, structure=structure)
    state = torch.get_rng_state()
    first, again, other = la.sample(3, seed=5), la.sample(3, seed=5), la.sample(3, seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(first) == 3
    among = oracle("bert", 3, structure).blocks
    for left, right in zip(first, again, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    vectors = [_vector(state, among) for state in first + other]
    for i, left in enumerate(vectors):
        assert all((left - right).abs().max() > 1e-6 for right in vectors[:i])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_peft_loads_them(build: object, structure: str) -> None:
    model, train = build(), random_examples(5)
    trained = peft.get_peft_model_state_dict(model)
    (state,) = fitted(model, train, structure=structure).sample(1, seed=3)
    assert {key: (value.shape, value.dtype) for key, value in state.items()} == {
        key: (value.shape, value.dtype) for key, value in trained.items()
    }
    other = build(seed=8)
    result = peft.set_peft_model_state_dict(other, dict(state))
    assert not result.unexpected_keys
    loaded = peft.get_peft_model_state_dict(other)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert not any(value.requires_grad for value in state.values())
    moved = {key for key in state if not torch.equal(state[key], trained[key])}
    head = {key for key in state if "lora_" not in key}
    assert moved == (head if structure == "last_layer" else set(state))


def test_what_is_held_at_map_stays() -> None:
    model, train, _ = setting()
    trained = peft.get_peft_model_state_dict(model)
    (state,) = fitted(model, train, include_modules_to_save=False).sample(1)
    for key, value in state.items():
        assert torch.equal(value, trained[key]) == ("lora_" not in key)


def test_changing_a_sample_does_not_change_the_model() -> None:
    model, train, test = setting()
    before = oracles.logits(model, test[0]).detach()
    la = fitted(model, train, structure="last_layer")
    for value in la.sample(1)[0].values():
        value.zero_()
    assert torch.equal(oracles.logits(model, test[0]).detach(), before)


def test_samples_spread_the_logits_as_the_covariance_says() -> None:
    """At a large precision the logits are linear in the weights, so sampled adapters must show p.covariance."""
    model, train, test = tiny_bert(), random_examples(5), random_examples(2, seed=6)
    la = fitted(model, train, structure="exact", prior_precision=3e4)
    expected = la.predict(collate(test)).covariance
    twin = tiny_bert()
    draws = []
    for state in la.sample(300, seed=1):
        peft.set_peft_model_state_dict(twin, dict(state))
        batch = collate(test)
        with torch.no_grad():
            draws.append(twin(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits)
    draws = torch.stack(draws)
    draws = draws - draws.mean(-1, keepdim=True)
    for row in range(len(test)):
        measured = torch.cov(draws[:, row].T)
        assert (measured - expected[row]).abs().max() < 0.25 * expected[row].abs().max()
