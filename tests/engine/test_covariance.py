"""The covariance of the centred logits equals the dense oracle's, for every structure, rule and kind of layer."""

import math

import pytest
import torch

import oracles
from engine.support import CASES, VARIANTS, close, expected_covariance, fitted, oracle, setting, spread
from laplace_lora import LaplaceLoRAError
from tiny_models import batches, collate, random_examples, tiny_bert, tiny_llama


@pytest.mark.parametrize(("structure", "kfac"), CASES)
@pytest.mark.parametrize("num_labels", [2, 4])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_equals_the_oracle(name: str, num_labels: int, structure: str, kfac: str) -> None:
    model, train, test = setting(name, num_labels)
    la = fitted(model, train, structure=structure, kfac=kfac, prior_precision=0.7)
    p = la.predict(collate(test))
    assert p.covariance.dtype == torch.float64
    close(p.covariance, expected_covariance(0.7, name, num_labels, structure, kfac))
    means = torch.stack([oracles.logits(model, example).detach() for example in test])
    torch.testing.assert_close(p.mean, means, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("structure", "kfac"), CASES)
@pytest.mark.parametrize(("train_side", "test_side"), [("left", "left"), ("left", "right"), ("right", "left")])
def test_padding_sides_of_a_causal_model(train_side: str, test_side: str, structure: str, kfac: str) -> None:
    model, train, test = setting("llama", 4)
    la = fitted(model, train, side=train_side, structure=structure, kfac=kfac)
    covariance = la.predict(collate(test, test_side)).covariance
    close(covariance, expected_covariance(1.0, "llama", 4, structure, kfac))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("structure", ["kron", "exact", "last_layer"])
def test_absolute_positions_of_a_causal_model(structure: str, side: str) -> None:
    model, train, test = setting("gpt2")
    la = fitted(model, train, side=side, structure=structure)
    p = la.predict(collate(test, side))
    close(p.covariance, expected_covariance(1.0, "gpt2", 3, structure))
    means = torch.stack([oracles.logits(model, example).detach() for example in test])
    torch.testing.assert_close(p.mean, means, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("structure", "kfac"), CASES)
@pytest.mark.parametrize("kind", ["module", "matrix"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_several_prior_precisions(name: str, kind: str, structure: str, kfac: str) -> None:
    model, train, test = setting(name)
    by_group, deltas = spread(oracle(name, 3, structure, kfac).blocks, kind)
    la = fitted(model, train, structure=structure, kfac=kfac, prior_groups=kind, prior_precision=by_group)
    assert la.prior_precision == by_group
    close(la.predict(collate(test)).covariance, expected_covariance(deltas, name, 3, structure, kfac))


@pytest.mark.parametrize("structure", ["kron", "diag", "exact", "low_rank", "kron_low_rank"])
@pytest.mark.parametrize("name", [name for name in VARIANTS if "-" in name])
def test_other_kinds_of_layer(name: str, structure: str) -> None:
    model, train, test = setting(name)
    by_group, deltas = spread(oracle(name, 3, structure).blocks, "matrix")
    la = fitted(model, train, structure=structure, prior_groups="matrix", prior_precision=by_group)
    close(la.predict(collate(test)).covariance, expected_covariance(deltas, name, 3, structure))


@pytest.mark.parametrize("kfac", ["fitted", "expand", "reduce"])
def test_rules_on_layers_without_a_sequence(kfac: str) -> None:
    """The LoRA pair on the pooler sees one vector per example; its T is 1 whatever the text's length."""
    model, train, test = setting("bert-all-linear")
    la = fitted(model, train, kfac=kfac)
    close(la.predict(collate(test)).covariance, expected_covariance(1.0, "bert-all-linear", 3, "kron", kfac))


@pytest.mark.parametrize("structure", ["kron", "diag", "exact"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_fully_trained_layers_can_be_left_out(name: str, structure: str) -> None:
    model, train, test = setting(name)
    la = fitted(model, train, structure=structure, include_modules_to_save=False)
    close(la.predict(collate(test)).covariance, expected_covariance(1.0, name, 3, structure, include_head=False))


@pytest.mark.parametrize("kfac", ["fitted", "expand", "reduce"])
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_one_token_two_classes_one_example_equals_the_exact_blocks(build: object, kfac: str) -> None:
    """Attention over one token has no gradient for its queries: those blocks are zero, and no 0/0 may appear."""
    model, train, test = build(2), random_examples(1, 2, shortest=1, longest=1), random_examples(3, 2, seed=5)
    la = fitted(model, train, kfac=kfac, prior_precision=0.5)
    posterior = oracles.dense_posterior(model, train, "block")
    expected = torch.stack([posterior.functional(model, example, 0.5) for example in test])
    close(la.predict(collate(test)).covariance, expected)


@pytest.mark.parametrize("structure", ["kron", "diag", "exact"])
@pytest.mark.parametrize("fisher", ["rademacher"])
def test_two_classes_need_one_row_whatever_its_sign(fisher: str, structure: str) -> None:
    model, train, test = setting("bert", 2)
    la = fitted(model, train, structure=structure, fisher=fisher)
    close(la.predict(collate(test)).covariance, expected_covariance(1.0, "bert", 2, structure))


def test_exact_refuses_random_signs_beyond_two_classes() -> None:
    model, train, _ = setting("bert", 3)
    with pytest.raises(LaplaceLoRAError, match="rademacher"):
        fitted(model, train, structure="exact", fisher="rademacher")


@pytest.mark.parametrize("count", [1, 2, 120])
def test_exact_with_fewer_and_with_more_rows_than_weights(count: int) -> None:
    """From 2 rows to 360, against 126 weights."""
    model = tiny_bert(4, targets=["query"], r=1)
    train, test = random_examples(count, 4, seed=3), random_examples(3, 4, seed=4)
    posterior = oracles.dense_posterior(model, train, "exact")
    expected = torch.stack([posterior.functional(model, example, 0.2) for example in test])
    la = fitted(model, train, size=16, structure="exact", prior_precision=0.2)
    close(la.predict(collate(test)).covariance, expected)


def test_exact_refuses_more_memory_than_allowed_and_says_how_much() -> None:
    model, train, _ = setting()
    with pytest.raises(LaplaceLoRAError, match=r"\d{4,}|\d (K|M|G|k)i?B|bytes"):
        fitted(model, train, structure="exact", memory_limit_bytes=1_000)


@pytest.mark.parametrize(("structure", "kfac"), CASES)
def test_covariance_is_symmetric_centred_and_positive(structure: str, kfac: str) -> None:
    model, train, test = setting("bert", 4)
    covariance = fitted(model, train, structure=structure, kfac=kfac).predict(collate(test)).covariance
    scale = covariance.abs().max()
    assert (covariance - covariance.mT).abs().max() <= 1e-12 * scale
    assert covariance.sum(-1).abs().max() <= 1e-12 * scale
    values = torch.linalg.eigvalsh(covariance)
    assert (values[:, 0].abs() <= 1e-12 * scale).all()
    assert (values[:, 1:] > 0).all()


@pytest.mark.parametrize("structure", ["kron", "diag", "exact", "last_layer"])
def test_whole_data_set_equals_its_batches(structure: str) -> None:
    model, train, test = setting()
    la = fitted(model, train, structure=structure)
    whole = la.predict_dataset(batches(test, 3))
    together = la.predict(collate(test))
    for field in ("mean", "covariance", "probabilities", "map_probabilities", "mutual_information"):
        torch.testing.assert_close(getattr(whole, field), getattr(together, field), rtol=1e-9, atol=1e-11)


def test_predict_ignores_labels_and_describes_itself() -> None:
    model, train, test = setting("bert", 4)
    la = fitted(model, train)
    batch = collate(test)
    with_labels = la.predict(batch)
    p = la.predict({key: value for key, value in batch.items() if key != "labels"})
    assert torch.equal(p.covariance, with_labels.covariance)
    assert torch.equal(p.probabilities, with_labels.probabilities)
    torch.testing.assert_close(p.map_probabilities, p.mean.softmax(-1))
    torch.testing.assert_close(p.probabilities.sum(-1), torch.ones(4, dtype=p.probabilities.dtype))
    assert torch.equal(p.prediction, p.probabilities.argmax(-1))
    assert torch.equal(p.confidence, p.probabilities.amax(-1))
    entropy = -(p.probabilities * p.probabilities.log()).sum(-1)
    torch.testing.assert_close(p.total_entropy, entropy, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(p.aleatoric_entropy + p.mutual_information, p.total_entropy, rtol=1e-6, atol=1e-9)
    assert (p.mutual_information > 0).all()
    assert not p.mean.requires_grad
    assert not p.covariance.requires_grad
    assert p.to("cpu").covariance.device.type == "cpu"
    assert (p.numpy()["covariance"] == p.covariance.numpy()).all()


@pytest.mark.parametrize(("structure", "kfac"), CASES)
def test_gaussian_likelihood(structure: str, kfac: str) -> None:
    """K real outputs: Lambda = I / sigma^2, and the covariance is that of the outputs themselves."""
    model, train, test = setting("bert", 3)
    values = torch.randn(len(train), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = [{**example, "labels": value} for example, value in zip(train, values, strict=True)]
    posterior = oracles.dense_posterior(model, data, structure, kfac, noise_variance=0.3)
    settings = {"structure": structure, "kfac": kfac, "likelihood": "gaussian", "noise_variance": 0.3}
    la = fitted(model, data, prior_precision=0.6, **settings)
    expected = torch.stack([posterior.functional(model, example, 0.6, centred=False) for example in test])
    close(la.predict(collate(test)).covariance, expected)
    assert math.isclose(la.log_marginal_likelihood(), posterior.log_evidence(0.6), rel_tol=1e-9)


def test_fitting_again_starts_anew() -> None:
    model, train, test = setting()
    la = fitted(model, random_examples(5, seed=8))
    la.fit(batches(train, 4))
    close(la.predict(collate(test)).covariance, expected_covariance(1.0))
