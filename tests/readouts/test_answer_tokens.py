"""AnswerTokens: the logits of answer tokens after the prompt equal the dense oracle's."""

import functools
import math

import pytest
import torch

import oracles
from engine.counting import Passes, counted_model
from engine.support import close
from laplace_lora import LaplaceLoRA, LaplaceLoRAError
from laplace_lora.readouts import AnswerTokens
from readouts import dense
from readouts.models import LANGUAGE_MODELS, collate_any, language_model, tiny_lm
from readouts.support import fit, same
from tiny_models import Example, batches, random_examples, tiny_bert

TOKENS = (7, 30, 12)
OUTPUTS = dense.answer_logits(TOKENS)
DELTA = 0.7


@functools.cache
def data() -> tuple[list[Example], list[Example]]:
    return random_examples(6, len(TOKENS)), random_examples(4, len(TOKENS), seed=77)


@functools.cache
def jacobians(name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return means and Jacobians of the test examples over all trained weights."""
    model = language_model(name)
    pairs = [dense.jacobian(model, example, OUTPUTS, oracles.blocks(model)) for example in data()[1]]
    return [f for f, _ in pairs], [j for _, j in pairs]


@functools.cache
def oracle(name: str, structure: str, kfac: str = "fitted") -> oracles.DensePosterior:
    model = language_model(name)
    return dense.posterior(model, data()[0], OUTPUTS, structure, kfac=kfac, label=lambda e: e["labels"])


def unread_rows(model: torch.nn.Module, dense_posterior: oracles.DensePosterior) -> float:
    """Return the squared norm of those rows of the output embeddings that no answer depends on."""
    total = 0.0
    for block in dense_posterior.blocks:
        if "lm_head" in block.name and not block.name.endswith(".lora_A"):
            values = oracles.weights(model, block)
            unread = torch.ones(len(values), dtype=torch.bool)
            unread[list(TOKENS)] = False
            total += float(values[unread].square().sum())
    return total


def assert_equals_oracle(la: LaplaceLoRA, name: str, expected: oracles.DensePosterior, side: str) -> None:
    model, means_and_jacobians = language_model(name), jacobians(name)
    p = la.predict(collate_any(data()[1], side))
    covariance = expected.covariance(DELTA)
    wanted = torch.stack([dense.centred(j @ covariance @ j.T) for j in means_and_jacobians[1]])
    close(p.covariance, wanted)
    close(p.mean, torch.stack(means_and_jacobians[0]), 1e-10)
    evidence = expected.log_evidence(DELTA) + 0.5 * DELTA * unread_rows(model, expected)
    assert math.isclose(la.log_marginal_likelihood(), evidence, rel_tol=1e-9)


@pytest.mark.parametrize("structure", ["kron", "diag", "exact", "low_rank", "kron_low_rank"])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_equals_the_oracle_over_all_weights(name: str, structure: str) -> None:
    """Also with LoRA on the output embeddings: rows that no answer depends on add nothing."""
    la = fit(
        language_model(name),
        AnswerTokens(TOKENS),
        [collate_any(data()[0][:4], "mixed"), collate_any(data()[0][4:])],
        structure=structure,
        prior_precision=DELTA,
    )
    assert_equals_oracle(la, name, oracle(name, structure), "mixed")


@pytest.mark.parametrize("kfac", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["llama-head", "gpt2", "llama-saved-head"])
def test_rules_of_the_factors(name: str, kfac: str) -> None:
    """The output embeddings see one position, which is all that enters their factors."""
    loader = [collate_any(data()[0], "mixed")]
    la = fit(language_model(name), AnswerTokens(TOKENS), loader, kfac=kfac, prior_precision=DELTA)
    assert_equals_oracle(la, name, oracle(name, "kron", kfac), "left")


@pytest.mark.parametrize("name", ["llama-head-alone", "llama-head", "llama-saved-head", "llama-tied-head"])
def test_last_layer_is_the_output_embeddings(name: str) -> None:
    model = language_model(name)
    among = [block for block in oracles.blocks(model) if "lm_head" in block.name]
    expected = dense.posterior(model, data()[0], OUTPUTS, "kron", label=lambda e: e["labels"], among=among)
    la = fit(model, AnswerTokens(TOKENS), batches(data()[0], 4), structure="last_layer", prior_precision=DELTA)
    covariance = expected.covariance(DELTA)
    pairs = [dense.jacobian(model, example, OUTPUTS, among) for example in data()[1]]
    wanted = torch.stack([dense.centred(j @ covariance @ j.T) for _, j in pairs])
    close(la.predict(collate_any(data()[1])).covariance, wanted)
    evidence = expected.log_evidence(DELTA) + 0.5 * DELTA * unread_rows(model, expected)
    assert math.isclose(la.log_marginal_likelihood(), evidence, rel_tol=1e-9)


def test_unread_rows_of_zero_leave_the_evidence_of_all_rows() -> None:
    model = tiny_lm(**LANGUAGE_MODELS["llama-head"])
    unread = [token for token in range(50) if token not in TOKENS]
    for name, parameter in model.named_parameters():
        if "lm_head.lora_B" in name:
            parameter.data[unread] = 0.0
    la = fit(model, AnswerTokens(TOKENS), batches(data()[0], 3), prior_precision=DELTA)
    expected = dense.posterior(model, data()[0], OUTPUTS, "kron", label=lambda e: e["labels"])
    assert math.isclose(la.log_marginal_likelihood(), expected.log_evidence(DELTA), rel_tol=1e-9)


def test_only_the_answers_rows_are_covered() -> None:
    model = language_model("llama-head")
    la = fit(model, AnswerTokens(TOKENS), batches(data()[0], 3))
    shapes = {shape.name.split("lm_head.")[-1]: shape for shape in la._covered.shapes if "lm_head" in shape.name}
    assert (shapes["lora_A"].out_features, shapes["lora_B"].out_features) == (3, len(TOKENS))
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    (key,) = [name for name in la.sample(1)[0] if "lm_head.lora_B" in name]
    drawn = torch.stack([state[key] for state in la.sample(3)])
    before = next(value for name, value in trained.items() if "lm_head.lora_B" in name)
    moved = (drawn != before.detach()).any(dim=0).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == sorted(TOKENS)


@pytest.mark.parametrize("side", ["right", "left", "mixed"])
@pytest.mark.parametrize("name", ["llama-head", "gpt2"])
def test_no_logits_at_other_positions(name: str, side: str) -> None:
    model, seen = language_model(name), []
    head = model.get_base_model().get_output_embeddings()
    handle = head.register_forward_hook(lambda _, args, output: seen.append((args[0].shape, output.shape)))
    try:
        la = fit(model, AnswerTokens(TOKENS), [collate_any(data()[0], side)])
        la.predict(collate_any(data()[1], side))
    finally:
        handle.remove()
    assert seen == [((6, 1, 16), (6, 1, 50)), ((4, 1, 16), (4, 1, 50))]


@pytest.mark.parametrize("structure", ["kron", "diag", "exact", "low_rank", "kron_low_rank"])
def test_batch_size_order_and_padding_change_nothing(structure: str) -> None:
    model, (train, test) = language_model("llama-head"), data()
    reference = fit(model, AnswerTokens(TOKENS), [collate_any(train)], structure=structure)
    for examples, size, side in ((train, 1, "right"), (train[::-1], 4, "mixed"), (train[2:] + train[:2], 5, "left")):
        loader = [collate_any(examples[i : i + size], side) for i in range(0, len(examples), size)]
        la = fit(model, AnswerTokens(TOKENS), loader, structure=structure)
        same(la, reference, collate_any(test, "mixed"))


def test_passes(passes: Passes) -> None:
    model, (train, test) = counted_model(tiny_lm(), passes), data()
    la = fit(model, AnswerTokens(TOKENS), batches(train, 2))
    assert passes.take() == (3, 3 * 2)
    la.predict(collate_any(test))
    assert passes.take() == (1, 2)
    la.predict(collate_any(test), top_k=2)
    assert passes.take() == (1, 1)
    la.tune_prior("evidence")
    assert passes.take() == (0, 0)


def test_top_k_lets_the_likeliest_answers_vary() -> None:
    model, (train, test) = language_model("llama-head"), data()
    la = fit(model, AnswerTokens(TOKENS), batches(train, 3))
    whole, best = la.predict(collate_any(test)), la.predict(collate_any(test), top_k=2)
    close(la.predict(collate_any(test), top_k=3).covariance, whole.covariance)
    expected = oracle("llama-head", "kron").covariance(1.0)
    for row, (f, j) in enumerate(zip(*jacobians("llama-head"), strict=True)):
        index = f.topk(2).indices
        wanted = dense.centred(j[index] @ expected @ j[index].T)
        close(best.covariance[row][index][:, index], wanted)
        rest = f.softmax(0).sum() - f.softmax(0)[index].sum()
        assert math.isclose(float(best.neglected_mass[row]), float(rest), rel_tol=1e-8)


def test_tuning_on_held_out_data() -> None:
    model, (train, test) = language_model("gpt2"), data()
    la = fit(model, AnswerTokens(TOKENS), batches(train, 3)).tune_prior("validation", batches(test, 3, "left"))
    j = dense.posterior(model, train, OUTPUTS, "kron").covariance(la.prior_precision)
    _, jac = jacobians("gpt2")
    close(la.predict(collate_any(test)).covariance, torch.stack([dense.centred(a @ j @ a.T) for a in jac]))


@pytest.mark.parametrize("name", ["llama-head", "llama-saved-head"])
def test_saved_and_loaded(name: str, tmp_path: object) -> None:
    model, (train, test) = language_model(name), data()
    la = fit(model, AnswerTokens(TOKENS), batches(train, 3)).tune_prior("evidence")
    la.save_pretrained(tmp_path)
    again = LaplaceLoRA.from_pretrained(model, tmp_path)
    assert isinstance(again.readout, AnswerTokens)
    assert again.readout.token_ids == TOKENS
    assert repr(again.readout) == "AnswerTokens(token_ids=[7, 30, 12])"
    same(again, la, collate_any(test), 1e-12)
    assert again.seen_in_fit(collate_any(train, "left")).all()


@pytest.mark.parametrize("ids", [[], [3], [3, 3], [3, -1], [3.5, 4], "ab", 7, [None, 2]])
def test_what_are_no_answers(ids: object) -> None:
    with pytest.raises(LaplaceLoRAError, match="give one per class"):
        AnswerTokens(ids)


@pytest.mark.parametrize("ids", [torch.tensor([3, 5]), range(2), (torch.tensor(3), 5)])
def test_what_are_answers(ids: object) -> None:
    assert len(AnswerTokens(ids).token_ids) == 2


def test_token_beyond_the_vocabulary() -> None:
    with pytest.raises(LaplaceLoRAError, match="answer token 50 is beyond the model's 50 tokens"):
        LaplaceLoRA(language_model("llama"), readout=AnswerTokens([3, 50]))


def test_models_that_are_no_language_models() -> None:
    with pytest.raises(LaplaceLoRAError, match="AutoModelForCausalLM"):
        LaplaceLoRA(tiny_bert(3), readout=AnswerTokens(TOKENS))


@pytest.mark.parametrize("labels", [torch.full((6,), 3), torch.full((6, 9), 1), torch.ones(6), -torch.ones(6).long()])
def test_labels_that_are_no_classes(labels: torch.Tensor) -> None:
    batch = collate_any(data()[0]) | {"labels": labels}
    with pytest.raises(LaplaceLoRAError, match="whole numbers from 0 to 2"):
        fit(language_model("llama"), AnswerTokens(TOKENS), [batch])


def test_another_readout_of_other_rows_is_refused() -> None:
    la = fit(language_model("llama-head"), AnswerTokens(TOKENS), batches(data()[0], 3))
    with pytest.raises(LaplaceLoRAError, match="fit with that readout"):
        la.predict(collate_any(data()[1]), readout=AnswerTokens([1, 2, 3]))
    other = fit(language_model("llama"), AnswerTokens(TOKENS), batches(data()[0], 3))
    assert other.predict(collate_any(data()[1]), readout=AnswerTokens([1, 2])).mean.shape == (4, 2)
