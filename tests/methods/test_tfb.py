"""TFB: the distribution of the drawn products, the search against a grid, and a model left alone."""

import copy
import dataclasses
import math
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn

from laplace_lora.errors import LaplaceLoRAError, UnsupportedAdapterError
from laplace_lora.methods.base import Subject
from laplace_lora.methods.pairs import Pair, plain_pairs
from laplace_lora.methods.tfb import Posterior, Tfb, inverse_spread, largest_within, relative_change
from laplace_lora.readouts import ClassLogits, OptionScores
from methods.subjects import Left, adapter_of
from readouts.models import multiple_choice, option_batches, option_examples
from tiny_models import batches, random_examples, tiny_bert, tiny_gpt2, tiny_llama

TRAIN, TEST = random_examples(9), random_examples(6, seed=1)
# The tiny models are less sure than trained ones: they stand more.
WIDE = Tfb(samples=3, tolerance=0.02, smallest=0.01, largest=0.6)


def subject_of(model: Any, **more: Any) -> Subject:
    return Subject(model, ClassLogits(), batches(TRAIN, 4), **more)


def pair_of(second: Tensor, inputs: int = 5) -> Pair:
    generator = torch.Generator().manual_seed(9)
    first = nn.Linear(inputs, second.shape[1], bias=False, dtype=second.dtype)
    first.weight.data = torch.randn(first.weight.shape, generator=generator, dtype=second.dtype)
    last = nn.Linear(second.shape[1], len(second), bias=False, dtype=second.dtype)
    last.weight.data = second
    return Pair("layer", first, last, "layer.lora_A.weight")


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the posterior -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 3), (4, 4), (2, 3)])
def test_noise_on_the_trained_pair_is_noise_on_the_rotated_one(shape: tuple[int, int]) -> None:
    second = normals(*shape)
    pair = pair_of(second)
    spread = inverse_spread(pair)
    left, values, right = torch.linalg.svd(second, full_matrices=False)
    rotated, turned = left * values, right @ pair.first.weight.detach()
    torch.testing.assert_close(rotated @ turned, second @ pair.first.weight.detach(), rtol=1e-12, atol=1e-12)
    normal, sigma = normals(len(values), 5, seed=1), 0.3
    ours = second @ (pair.first.weight.detach() + sigma * spread @ normal)
    # A singular vector's sign is anyone's: ours and these are from one routine.
    theirs = rotated @ (turned + sigma / values[:, None] * normal)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_the_product_has_equal_variance_in_the_column_space_and_none_outside() -> None:
    # The low-rank isotropic Gaussian: Cov(vec of the columns) = I_in x sigma^2 P, P the projector onto B's columns.
    model = tiny_bert()
    pairs = plain_pairs(model, "TFB")
    with torch.no_grad():
        pairs[0].second.weight.copy_(normals(16, 3) * torch.tensor([4.0, 1.0, 0.01], dtype=torch.float64))
    samples, sigma = 3_000, 0.2
    posterior = Posterior(subject_of(model), samples)
    for pair in (pairs[0], pairs[3]):
        second = pair.second.weight.detach()
        moves = torch.stack([state[pair.key] for state in posterior.states(sigma)]) - pair.first.weight.detach()
        products = (second @ moves).transpose(1, 2).reshape(samples, -1)
        covariance = products.T @ products / samples
        orthonormal, _ = torch.linalg.qr(second)
        expected = torch.kron(torch.eye(16, dtype=torch.float64), sigma**2 * orthonormal @ orthonormal.T)
        # Covariances of normal variables: variance (s_ii s_jj + s_ij^2) / n.
        diagonal = expected.diagonal()
        error = ((torch.outer(diagonal, diagonal) + expected.square()) / samples).sqrt()
        assert ((covariance - expected).abs() <= 5.5 * error).all()
        assert (products.mean(0).abs() <= 5.0 * (diagonal / samples).sqrt()).all()


def test_directions_without_effect_get_no_noise() -> None:
    second = normals(6, 2) @ normals(2, 3, seed=1)
    spread = inverse_spread(pair_of(second))
    assert spread.shape == (3, 2)
    _, values, _ = torch.linalg.svd(second)
    assert spread.norm(dim=0).max() <= 1.01 / values[1]
    moves = second @ spread @ normals(2, 5)
    projector = second @ torch.linalg.pinv(second)
    torch.testing.assert_close(projector @ moves, moves, rtol=1e-9, atol=1e-10)
    # Orthonormal columns in the column space: the two directions have equal variance.
    columns = second @ spread
    torch.testing.assert_close(columns.T @ columns, torch.eye(2, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rank_is_judged_at_the_weights_precision(dtype: torch.dtype) -> None:
    second = torch.cat([normals(6, 2), torch.zeros(6, 1, dtype=torch.float64)], dim=1)
    second[:, 2] = second[:, 0] * (1.0 + 0.1 * torch.finfo(dtype).eps)
    pair = pair_of(second)
    pair = dataclasses.replace(pair, second=pair.second.to(dtype))
    assert inverse_spread(pair).shape == (3, 2)


def test_an_untrained_adapter_gets_no_noise() -> None:
    model = tiny_bert()
    for pair in plain_pairs(model, "TFB"):
        nn.init.zeros_(pair.second.weight)
    fitted = Tfb(samples=2).fit(subject_of(model))
    assert fitted.found["change"] <= 1e-12
    assert fitted.found["within"]
    found = fitted.answer(batches(TEST, 4))
    assert found.mutual_information is not None
    assert np.abs(found.mutual_information).max() <= 1e-12


# --- the search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_the_accepted_number_is_the_largest_of_the_grid(steps: int) -> None:
    grid = [0.001 + k * 0.014 / 2**steps for k in range(2**steps)]
    for bound in np.random.default_rng(0).uniform(0.001, 0.016, 40):
        calls: list[float] = []

        def change(sigma: float, bound: float = bound, calls: list[float] = calls) -> float:
            calls.append(sigma)
            return (sigma / bound) ** 2

        found, at = largest_within(change, 0.001, 0.015, steps, 1.0)
        expected = max(sigma for sigma in grid if sigma <= bound)
        assert math.isclose(found, expected, rel_tol=1e-12)
        assert at == (found / bound) ** 2
        assert len(calls) == steps + (found == 0.001)


def test_where_nothing_is_within_tolerance_it_is_the_smallest() -> None:
    assert largest_within(lambda sigma: 7.0 + sigma, 0.5, 1.0, 3, 1.0) == (0.5, 7.5)


def test_changes() -> None:
    assert math.isclose(relative_change(2.0, 2.5), 0.25)
    assert math.isclose(relative_change(2.0, 1.5), 0.25)
    assert relative_change(0.0, 0.0) == 0.0
    assert relative_change(0.0, 0.1) == math.inf
    assert relative_change(1.0, math.inf) == math.inf


def plain_members(model: nn.Module, states: list[dict[str, Tensor]], data: list[dict[str, Tensor]]) -> np.ndarray:
    other = copy.deepcopy(model).eval()
    members = []
    for state in states:
        peft.set_peft_model_state_dict(other, state)
        rows = []
        for batch in data:
            with torch.no_grad():
                logits = other(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            rows.append(logits.softmax(-1).numpy())
        members.append(np.concatenate(rows))
    return np.stack(members)


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("labels", ["predicted", "true"])
def test_sigma_against_a_plain_search(build: Any, labels: Any) -> None:
    model = build()
    model.get_base_model().config.use_cache = False
    subject = subject_of(model, seed=3)
    fitted = dataclasses.replace(WIDE, labels=labels, tolerance=0.005).fit(subject)
    posterior, data = Posterior(subject, 3), batches(TRAIN, 1)
    before = plain_members(model, [adapter_of(model)], data)[0]
    classes = before.argmax(-1) if labels == "predicted" else np.array([int(row["labels"]) for row in TRAIN])
    rows = np.arange(len(TRAIN))
    start = -np.log(before[rows, classes]).mean()

    def change(sigma: float) -> float:
        mean = plain_members(model, posterior.states(sigma), data).mean(0)
        return abs(-np.log(mean[rows, classes]).mean() - start) / start

    low, high = 0.01, 0.6
    for _ in range(5):
        middle = (low + high) / 2
        low, high = (middle, high) if change(middle) <= 0.005 else (low, middle)
    assert math.isclose(fitted.found["sigma"], low, rel_tol=1e-12)
    assert math.isclose(fitted.found["change"], change(low), rel_tol=1e-6, abs_tol=1e-12)
    assert fitted.found["within"] is bool(change(low) <= 0.005)
    answers = fitted.answer(batches(TEST, 4))
    members = plain_members(model, posterior.states(low), batches(TEST, 1))
    average = members.mean(0)
    np.testing.assert_allclose(answers.probabilities.values, average, rtol=0, atol=1e-10)
    information = -(average * np.log(average)).sum(-1) + (members * np.log(members)).sum(-1).mean(0)
    np.testing.assert_allclose(answers.mutual_information, information, rtol=0, atol=1e-10)


def test_the_accepted_variance_is_the_largest_of_all_that_are_within_tolerance() -> None:
    model = tiny_bert()
    subject = subject_of(model, seed=1)
    fitted = dataclasses.replace(WIDE, steps=4).fit(subject)
    posterior, data = Posterior(subject, 3), batches(TRAIN, 1)
    before = plain_members(model, [adapter_of(model)], data)[0]
    classes = before.argmax(-1)
    start = -np.log(before.max(-1)).mean()
    grid = [0.01 + k * (0.6 - 0.01) / 16 for k in range(16)]
    changes = []
    for sigma in grid:
        mean = plain_members(model, posterior.states(sigma), data).mean(0)
        changes.append(abs(-np.log(mean[np.arange(len(TRAIN)), classes]).mean() - start) / start)
    # What the search assumes holds here.
    assert changes == sorted(changes)
    within = [sigma for sigma, change in zip(grid, changes, strict=True) if change <= 0.02]
    assert 2 < len(within) < 15
    assert math.isclose(fitted.found["sigma"], within[-1], rel_tol=1e-12)


def test_a_smallest_sigma_that_is_too_large_is_taken_and_named() -> None:
    fitted = dataclasses.replace(WIDE, tolerance=0.0).fit(subject_of(tiny_bert()))
    assert fitted.found["sigma"] == 0.01
    assert fitted.found["change"] > 0.0
    assert fitted.found["within"] is False


def test_a_change_from_no_loss_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A saturated adapter's loss on its own predictions is 0: results are JSON, which knows no infinity."""
    losses = iter([0.0, *[0.1] * 6])
    monkeypatch.setattr("laplace_lora.methods.tfb.negative_log_likelihood", lambda *_: next(losses))
    fitted = WIDE.fit(subject_of(tiny_bert()))
    assert fitted.found == {"sigma": 0.01, "change": None, "within": False}


def test_forward_passes() -> None:
    model = tiny_bert()
    calls: list[int] = []
    with model.register_forward_hook(lambda *_: calls.append(1)):
        fitted = dataclasses.replace(WIDE, tolerance=0.5).fit(subject_of(model))
        assert fitted.found["sigma"] > 0.01
        # Three batches each.
        assert len(calls) == 3 * (1 + 3 * 5)
        calls.clear()
        dataclasses.replace(WIDE, tolerance=0.0).fit(subject_of(model))
        assert len(calls) == 3 * (1 + 3 * 6)
        calls.clear()
        fitted.answer(batches(TEST, 4))
        assert len(calls) == 2 * 3


# --- what is left, and what it depends on ------------------------------------------------------------------------


def test_it_depends_on_the_seed_alone() -> None:
    model = tiny_bert()
    found = WIDE.fit(subject_of(model, seed=1)).answer(batches(TEST, 4)).probabilities.values
    torch.manual_seed(77)
    again = WIDE.fit(subject_of(model, seed=1)).answer(batches(TEST, 4)).probabilities.values
    assert np.array_equal(found, again)
    other = WIDE.fit(subject_of(model, seed=2)).answer(batches(TEST, 4)).probabilities.values
    assert np.abs(other - found).max() > 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_found(training: bool) -> None:
    model = tiny_bert(dtype=torch.float32)
    model.train(training)
    subject = subject_of(model)
    left = Left(model)
    fitted = WIDE.fit(subject)
    left.check()
    fitted.answer(batches(TEST, 4))
    left.check()
    assert list(subject.stopwatch.seconds) == ["tune"]
    assert fitted.stored_bytes == 8


def test_the_model_is_left_as_it_was_found_after_a_failure() -> None:
    model = tiny_bert()
    seen: list[Tensor] = []
    key = plain_pairs(model, "TFB")[0].key

    def fail(module: nn.Module, inputs: object, outputs: object) -> None:
        seen.append(adapter_of(model)[key])
        if len(seen) == 5:
            raise RuntimeError("in the middle")

    with model.register_forward_hook(fail):
        left = Left(model)
        with pytest.raises(RuntimeError, match="in the middle"):
            WIDE.fit(subject_of(model))
        left.check()
    assert torch.equal(seen[0], adapter_of(model)[key])
    assert not torch.equal(seen[4], seen[0])


def test_examples_with_fewer_options() -> None:
    examples = option_examples((4, 2, 3, 1, 2))
    data = option_batches(examples, 2, side="right", completion=False)
    subject = Subject(copy.deepcopy(multiple_choice()), OptionScores(), data)
    for labels in ("predicted", "true"):
        fitted = Tfb(samples=2, tolerance=0.05, labels=labels).fit(subject)  # type: ignore[arg-type]
        found = fitted.answer(data)
        absent = np.arange(4)[None] >= np.array([4, 2, 3, 1, 2])[:, None]
        assert math.isfinite(fitted.found["change"])
        assert (found.probabilities.values[absent] == 0.0).all()
        assert (found.probabilities.values[~absent] > 0.0).all()


def test_half_precision_weights() -> None:
    answers = WIDE.fit(subject_of(tiny_bert(dtype=torch.bfloat16))).answer(batches(TEST, 4))
    assert answers.mutual_information is not None
    assert answers.mutual_information.max() > 0.0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_dora": True}, r"query\.lora_A is of another kind"),
        ({"targets": ["word_embeddings", "query"]}, r"word_embeddings\.lora_embedding_A is of another kind"),
    ],
)
def test_other_kinds_of_adapter_are_refused_by_name(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=rf"TFB is defined.*{what}.*retrain with plain LoRA\.$"):
        Tfb().fit(subject_of(tiny_bert(**options)))


def test_what_cannot_be_searched_is_refused() -> None:
    unlabelled = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches(TRAIN, 4)]
    subject = dataclasses.replace(subject_of(tiny_bert()), train=unlabelled)
    with pytest.raises(LaplaceLoRAError, match=r"no labels in the training data; add them"):
        Tfb(labels="true").fit(subject)
    assert WIDE.fit(subject).found == WIDE.fit(subject_of(subject.model)).found
    for wrong in ({"samples": 0}, {"steps": 0}, {"smallest": 0.0}, {"largest": 0.001}, {"tolerance": -1.0}):
        with pytest.raises(LaplaceLoRAError, match=r"tfb .*; give "):
            Tfb(**wrong)  # type: ignore[arg-type]
    with pytest.raises(LaplaceLoRAError, match=r"give 'predicted' or 'true'\.$"):
        Tfb(labels="any")  # type: ignore[arg-type]


def test_settings() -> None:
    assert Tfb().settings() == {
        "samples": 10,
        "tolerance": 0.003,
        "steps": 5,
        "smallest": 0.001,
        "largest": 0.015,
        "labels": "predicted",
    }
    assert (Tfb.name, Tfb.trains, Tfb.needs_held_out) == ("tfb", False, False)
