"""BLoB: its KL, its noise, and a whole training against loops written out; and a model left alone."""

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
from laplace_lora.methods import variational
from laplace_lora.methods.base import Subject
from laplace_lora.methods.blob import Blob, BlobMean
from laplace_lora.methods.pairs import plain_pairs
from laplace_lora.methods.variational import ROOT, Noise, cycle_length, draw, flipout, kl_divergence, kl_step, kl_weight
from laplace_lora.readouts import ClassLogits
from laplace_lora.training import TrainingSettings
from methods.retrained import (
    bert_subject,
    memory,
    subject_of,
    without_dropout,
)
from methods.subjects import Left, adapter_of, batch_of
from tiny_models import batches, random_examples, tiny_bert, tiny_gpt2, tiny_llama

TEST = random_examples(6, seed=1)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal_prior(deviation: float) -> torch.distributions.Normal:
    return torch.distributions.Normal(*torch.tensor([0.0, deviation], dtype=torch.float64))


# --- the KL ------------------------------------------------------------------------------------------------------


def test_the_kl_is_that_of_the_distributions() -> None:
    mean, root = normals(3, 5), 0.1 + normals(3, 5, seed=1).abs()
    total = 0.0
    for m, g in zip(mean.flatten(), root.flatten(), strict=True):
        posterior = torch.distributions.Normal(m, g**2)
        total += float(torch.distributions.kl_divergence(posterior, normal_prior(0.7)))
    assert math.isclose(float(kl_divergence(mean, root, 0.7)), total, rel_tol=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_its_step_is_down_the_gradient(sign: float) -> None:
    mean, root = normals(3, 5).requires_grad_(), (sign * (0.1 + normals(3, 5, seed=1).abs())).requires_grad_()
    torch.distributions.kl_divergence(torch.distributions.Normal(mean, root**2), normal_prior(0.7)).sum().backward()
    found = (mean.detach().clone(), root.detach().clone())
    kl_step(*found, 0.7, 0.03)
    for before, after in zip((mean, root), found, strict=True):
        torch.testing.assert_close(after, before.detach() - 0.03 * before.grad, rtol=1e-12, atol=1e-14)


def test_small_steps_end_at_the_prior() -> None:
    mean, root = normals(2, 3), 0.05 * torch.ones(2, 3, dtype=torch.float64)
    for _ in range(5_000):
        kl_step(mean, root, 0.2, 1e-3)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-12)
    torch.testing.assert_close(root.square(), 0.2 * torch.ones_like(root), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cycle", [1, 2, 7, 40])
def test_weights_of_a_cycle(cycle: int) -> None:
    found = [kl_weight(step, cycle) for step in range(1, cycle + 1)]
    np.testing.assert_allclose(found, [2**i / (2 ** (cycle + 1) - 1) for i in range(1, cycle + 1)], rtol=1e-15)
    # 2^0 is missing.
    assert math.isclose(sum(found), 1.0 - 1.0 / (2 ** (cycle + 1) - 1), rel_tol=1e-15)
    assert [kl_weight(step, cycle) for step in range(cycle + 1, 2 * cycle + 1)] == found


def test_weights_of_a_long_cycle_do_not_overflow() -> None:
    found = [kl_weight(step, 5_000) for step in range(1, 5_001)]
    assert math.isclose(sum(found), 1.0, rel_tol=1e-12)
    assert found[-1] == 0.5
    assert found[0] == 0.0


def test_lengths_of_cycles() -> None:
    # 640 examples of WinoGrande-S, batches of 4, gamma 8.
    assert cycle_length(640, 4, 8.0) == int(100 * 640 ** (math.pi / 8) / 4) == 316
    assert cycle_length(1, 200, 8.0) == 1


# --- the noise ---------------------------------------------------------------------------------------------------


def drawn(noise: Noise, x: Tensor, outputs: Tensor, steps: int) -> Tensor:
    found = []
    for step in range(1, steps + 1):
        noise.step = step
        found.append(flipout(x, noise._roots[0].detach().square(), *noise.drawn(0, x, outputs)))
    return torch.stack(found)


def test_the_noise_has_the_deviation_of_the_weights() -> None:
    root, x = 0.3 + 0.2 * normals(4, 6, seed=2), normals(2, 3, 6, seed=3)
    noise = Noise([], [nn.Parameter(root)], seed=5)
    samples = 20_000
    found = drawn(noise, x, torch.empty(2, 3, 4), samples)
    variance = torch.einsum("bti,oi->bto", x.square(), root.pow(4))
    # Five standard errors; those of a normal variable's variance are sqrt(2 / n) of it.
    assert (found.mean(0).abs() <= 5.0 * (variance / samples).sqrt()).all()
    assert ((found.square().mean(0) - variance).abs() <= 5.0 * variance * math.sqrt(2.0 / samples)).all()


def test_noises_of_rows_are_not_correlated() -> None:
    root = 0.3 + 0.2 * normals(4, 6, seed=2)
    # The same input everywhere: without signs all rows would be equal.
    x = normals(6, seed=3).expand(2, 3, 6)
    noise = Noise([], [nn.Parameter(root)], seed=5)
    samples = 20_000
    rows = drawn(noise, x, torch.empty(2, 3, 4), samples).reshape(samples, 24)
    scaled = rows / rows.square().mean(0).sqrt()
    correlations = (scaled.T @ scaled / samples).fill_diagonal_(0.0)
    assert correlations.abs().max() <= 5.5 / math.sqrt(samples)


def test_a_row_sees_one_deviation_of_all_weights() -> None:
    x, deviation, normal = normals(2, 3, 6), normals(4, 6, seed=1).abs(), normals(4, 6, seed=2)
    signs_in, signs_out = normals(2, 3, 6, seed=3).sign(), normals(2, 3, 4, seed=4).sign()
    found = flipout(x, deviation, normal, signs_in, signs_out)
    for b in range(2):
        for t in range(3):
            own = deviation * normal * torch.outer(signs_out[b, t], signs_in[b, t])
            torch.testing.assert_close(found[b, t], own @ x[b, t], rtol=1e-12, atol=1e-13)


def test_the_noise_depends_on_seed_step_and_site_alone() -> None:
    roots = [nn.Parameter(normals(4, 6)), nn.Parameter(normals(4, 6))]
    x, outputs = normals(2, 3, 6), torch.empty(2, 3, 4)

    def first(seed: int, step: int, site: int) -> Tensor:
        noise = Noise([], roots, seed)
        noise.step = step
        return noise.drawn(site, x, outputs)[0]

    torch.manual_seed(0)
    found = first(1, 2, 0)
    torch.manual_seed(1)
    assert torch.equal(first(1, 2, 0), found)
    assert not any(torch.equal(first(*other), found) for other in [(2, 2, 0), (1, 3, 0), (1, 2, 1)])


# --- training ----------------------------------------------------------------------------------------------------

SETTINGS = TrainingSettings(
    steps=6, batch_size=50, learning_rate=1e-2, warmup=0.3, weight_decay=0.1, most_gradient=0.7, seed=4
)
BLOB = Blob(epsilon=0.3, beta=0.4, kl_rate=0.05, gamma=1e3, samples=3)


def test_the_training_is_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[dict[str, Tensor]] = []
    replay: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def watched(rows: Any) -> dict[str, Tensor]:
        order.append(batch_of(rows))
        return order[-1]

    model = without_dropout(tiny_bert())
    subject = subject_of(model, SETTINGS, examples=120, trained=False, collate=watched, seed=7)
    plain = copy.deepcopy(model)
    real = Noise.drawn

    def recorded(self: Noise, index: int, x: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        replay[self.step, index] = real(self, index, x, outputs)
        return replay[self.step, index]

    starts: list[Tensor] = []
    start = variational._start

    def kept(*args: Any) -> nn.Parameter:
        starts.append(start(*args).detach().clone())
        return start(*args)

    monkeypatch.setattr(Noise, "drawn", recorded)
    monkeypatch.setattr(variational, "_start", kept)
    found = BLOB.fit(subject)._posterior  # type: ignore[attr-defined]

    assert all((value >= 0.3 / math.sqrt(2)).all() and (value <= 0.3).all() for value in starts)
    firsts = [module for name, module in plain.named_modules() if name.endswith("lora_A.default")]
    roots = [value.clone().requires_grad_() for value in starts]
    own = [p for name, p in plain.named_parameters() if "lora_" in name or "modules_to_save" in name]
    for parameter in plain.parameters():
        parameter.requires_grad_(any(parameter is other for other in own))
    optimizer = torch.optim.AdamW([*own, *roots], weight_decay=0.1)
    plain.train()
    norms: list[float] = []
    for step, batch in enumerate(order, 1):
        # Warm-up of two steps, then down to 0.
        shape = (step - 1) / 2 if step <= 2 else (6 - (step - 1)) / 4
        optimizer.param_groups[0]["lr"] = 1e-2 * shape
        handles = []
        for index, (first, root) in enumerate(zip(firsts, roots, strict=True)):

            def explicit(module: Any, args: Any, outputs: Tensor, index: int = index, root: Tensor = root) -> Tensor:
                normal, signs_in, signs_out = replay[step, index]  # noqa: B023
                weights = module.weight + root**2 * normal * signs_out[..., :, None] * signs_in[..., None, :]
                return torch.einsum("btoi,bti->bto", weights, args[0])

            handles.append(first.register_forward_hook(explicit))
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        loss = -plain(**inputs).logits.log_softmax(-1)[range(len(batch["labels"])), batch["labels"]].mean()
        optimizer.zero_grad()
        loss.backward()
        for handle in handles:
            handle.remove()
        norm = torch.stack([p.grad.square().sum() for p in own]).sum().sqrt()
        norms.append(float(norm))
        for parameter in own:
            parameter.grad *= min(1.0, 0.7 / (float(norm) + 1e-6))
        optimizer.step()
        pi = {1: 2 / 7, 0: 4 / 7}[step % 2]
        for first, root in zip(firsts, roots, strict=True):
            posterior = torch.distributions.Normal(first.weight, root**2)
            divergence = torch.distributions.kl_divergence(posterior, normal_prior(0.4)).sum()
            gradients = torch.autograd.grad(divergence, [first.weight, root])
            with torch.no_grad():
                for parameter, gradient in zip((first.weight, root), gradients, strict=True):
                    parameter -= 0.05 * shape * pi * gradient
    assert len(order) == 6
    # Gradients were clipped in some steps.
    assert min(norms) < 0.7 < max(norms)
    expected = adapter_of(plain)
    assert found.keys() == expected.keys() | {key + ROOT for key in expected if "lora_A" in key}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-11)
    for key, value in zip([key for key in expected if "lora_A" in key], roots, strict=True):
        torch.testing.assert_close(found[key + ROOT], value.detach(), rtol=1e-9, atol=1e-11)
    # All three parts moved: the means, G, and what is deterministic.
    assert all(not torch.equal(value, expected[key]) for key, value in adapter_of(model).items())
    assert all((root.detach() - value).abs().max() > 0.01 for root, value in zip(roots, starts, strict=True))


def test_without_noise_and_without_the_kl_it_is_the_training_itself() -> None:
    settings = TrainingSettings(steps=5, batch_size=3, learning_rate=1e-2, dropout=0.3, seed=4)
    subject = subject_of(tiny_bert(), settings)
    found = BlobMean(epsilon=1e-30, kl_rate=0.0).fit(subject)._posterior  # type: ignore[attr-defined]
    now = adapter_of(subject.model)
    assert all(torch.equal(found[key], value) for key, value in now.items())


def test_the_noise_alone_changes_the_training() -> None:
    subject = bert_subject()
    found = BlobMean(epsilon=1.0, kl_rate=0.0).fit(subject)._posterior  # type: ignore[attr-defined]
    assert all(not torch.equal(found[key], value) for key, value in adapter_of(subject.model).items() if "lora" in key)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_found(training: bool) -> None:
    subject = bert_subject()
    subject.model.train(training)
    left = Left(subject.model)
    for method in (Blob(samples=2), BlobMean()):
        fitted = method.fit(subject)
        left.check()
        fitted.answer(batches(TEST, 4))
        left.check()


def test_the_model_is_left_as_it_was_found_after_a_failure() -> None:
    subject = bert_subject()
    calls: list[int] = []

    def fail(module: nn.Module, inputs: object, outputs: object) -> None:
        calls.append(sum(len(m._forward_hooks) for n, m in subject.model.named_modules() if "lora_A" in n))
        if len(calls) == 3:
            raise RuntimeError("in the middle")

    with subject.model.register_forward_hook(fail):
        left = Left(subject.model)
        with pytest.raises(RuntimeError, match="in the middle"):
            Blob().fit(subject)
        left.check()
    # One hook at each of the four sites.
    assert calls == [4, 4, 4]


def test_checkpointed_activations_see_the_same_noise() -> None:
    found, calls = [], [0, 0]
    for checkpointing in (False, True):
        model = without_dropout(tiny_bert())

        def count(*_: object, checkpointing: bool = checkpointing) -> None:
            calls[checkpointing] += 1

        plain_pairs(model, "BLoB")[0].first.register_forward_hook(count)
        subject = subject_of(model, TrainingSettings(steps=3, batch_size=3, learning_rate=1e-2, seed=4), trained=False)
        if checkpointing:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        found.append(BlobMean(epsilon=1.0).fit(subject)._posterior)  # type: ignore[attr-defined]
    # Every layer ran twice.
    assert calls == [3, 6]
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-9, atol=1e-11)


def test_both_methods_train_once() -> None:
    subject = bert_subject(remember=memory())
    trainings = []
    retrain = subject.retrain
    assert retrain is not None

    def counted(**settings: Any) -> dict[str, Tensor]:
        trainings.append(settings)
        return retrain(**settings)

    subject = dataclasses.replace(subject, retrain=counted)
    sampled, mean = Blob().fit(subject), BlobMean().fit(subject)
    assert len(trainings) == 1
    assert trainings[0]["trained"] is False
    assert list(subject.stopwatch.seconds) == ["train"]
    assert sampled.found == mean.found
    assert sampled.stored_bytes == 4 * 3 * 16 * 8
    assert mean.stored_bytes == 0
    BlobMean(beta=0.1).fit(subject)
    assert len(trainings) == 2


def test_float32_and_half_precision_weights() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        settings = TrainingSettings(steps=3, batch_size=3, learning_rate=1e-2, seed=4)
        subject = subject_of(without_dropout(tiny_bert(dtype=dtype)), settings, trained=False)
        fitted = Blob(samples=2).fit(subject)
        roots = [value for key, value in fitted._posterior.items() if key.endswith(ROOT)]  # type: ignore[attr-defined]
        assert {root.dtype for root in roots} == {torch.float32}
        assert fitted.answer(batches(TEST, 4)).probabilities.values.shape == (6, 3)


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [tiny_bert, tiny_llama, tiny_gpt2])
def test_answers_are_a_plain_loop_over_draws(build: Any) -> None:
    model = build()
    model.get_base_model().config.use_cache = False
    settings = TrainingSettings(steps=3, batch_size=3, learning_rate=1e-2, seed=4)
    subject = subject_of(model, settings, trained=False, remember=memory(), seed=3)
    sampled, mean = Blob(samples=4).fit(subject), BlobMean().fit(subject)
    posterior = mean._posterior  # type: ignore[attr-defined]
    states = draw(posterior, 4, 3)
    other = copy.deepcopy(model).eval()

    def plain(state: dict[str, Tensor]) -> np.ndarray:
        peft.set_peft_model_state_dict(other, {k: v for k, v in state.items() if not k.endswith(ROOT)})
        rows = []
        for batch in batches(TEST, 1):
            with torch.no_grad():
                logits = other(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            rows.append(logits.softmax(-1).numpy())
        return np.concatenate(rows)

    members = np.stack([plain(state) for state in states])
    answers = sampled.answer(batches(TEST, 4))
    average = members.mean(0)
    np.testing.assert_allclose(answers.probabilities.values, average, rtol=0, atol=1e-10)
    information = -(average * np.log(average)).sum(-1) + (members * np.log(members)).sum(-1).mean(0)
    np.testing.assert_allclose(answers.mutual_information, information, rtol=0, atol=1e-10)
    single = mean.answer(batches(TEST, 4))
    np.testing.assert_allclose(single.probabilities.values, plain(dict(posterior)), rtol=0, atol=1e-10)
    assert single.mutual_information is None


def test_draws_have_the_posteriors_moments() -> None:
    mean, root = normals(2, 3), normals(2, 3, seed=1)
    posterior = {"a.lora_A.weight": mean, "a.lora_A.weight" + ROOT: root, "a.lora_B.weight": normals(3, 2)}
    samples = 4_000
    states = draw(posterior, samples, seed=2)
    assert all(state.keys() == {"a.lora_A.weight", "a.lora_B.weight"} for state in states)
    assert all(torch.equal(state["a.lora_B.weight"], posterior["a.lora_B.weight"]) for state in states)
    found = torch.stack([state["a.lora_A.weight"] for state in states])
    variance = root**4
    assert ((found.mean(0) - mean).abs() <= 4.5 * (variance / samples).sqrt()).all()
    assert ((found.var(0) - variance).abs() <= 4.5 * variance * math.sqrt(2.0 / samples)).all()
    again = draw(dict(reversed(posterior.items())), 1, seed=2)[0]["a.lora_A.weight"]
    assert torch.equal(again, found[0])
    assert not torch.equal(draw(posterior, 1, seed=3)[0]["a.lora_A.weight"], found[0])


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_dora": True}, r"query\.lora_A is of another kind"),
        ({"targets": ["word_embeddings", "query"]}, r"word_embeddings\.lora_embedding_A is of another kind"),
    ],
)
def test_other_kinds_of_adapter_are_refused_by_name(options: dict[str, Any], what: str) -> None:
    subject = Subject(tiny_bert(**options), ClassLogits(), [], retrain=lambda **_: {})
    with pytest.raises(UnsupportedAdapterError, match=rf"BLoB is defined.*{what}.*retrain with plain LoRA\.$"):
        Blob().fit(subject)


def test_biases_and_heads_beside_the_pairs_are_deterministic() -> None:
    model = tiny_bert(bias="lora_only", targets=["query", "value"])
    pairs = plain_pairs(model, "BLoB")
    assert len(pairs) == 4
    assert all(pair.key.endswith(f"{pair.name.removeprefix('base_model.model.')}.lora_A.weight") for pair in pairs)
    assert all(adapter_of(model)[pair.key].data_ptr() != pair.first.weight.data_ptr() for pair in pairs)
    assert all(torch.equal(adapter_of(model)[pair.key], pair.first.weight) for pair in pairs)


def test_what_cannot_be_trained_is_refused() -> None:
    subject = dataclasses.replace(bert_subject(), retrain=None)
    with pytest.raises(LaplaceLoRAError, match="blob_mean trains an adapter of its own"):
        BlobMean().fit(subject)
    with pytest.raises(LaplaceLoRAError, match=r"blob cannot draw 0 adapters; give 1 at least, or use blob_mean\.$"):
        Blob(samples=0)
    with pytest.raises(LaplaceLoRAError, match=r"epsilon 0.*give positive numbers"):
        BlobMean(epsilon=0.0)
    with pytest.raises(LaplaceLoRAError, match=r"training diverged.*give a smaller kl_rate"):
        Blob(epsilon=1e-9, kl_rate=1e300, gamma=1e3).fit(bert_subject())


def test_settings() -> None:
    assert Blob().settings() == {"epsilon": 0.05, "beta": 0.2, "kl_rate": 0.01, "gamma": 8.0, "samples": 10}
    assert BlobMean().settings() == {"epsilon": 0.05, "beta": 0.2, "kl_rate": 0.01, "gamma": 8.0}
    assert (Blob.name, BlobMean.name, Blob.trains) == ("blob", "blob_mean", True)
