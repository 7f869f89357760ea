"""NextToken: the likelihood of a text's labelled tokens, and the GGN from sampled ones."""

import dataclasses
import functools
import math

import pytest
import torch
from torch import nn

import oracles
from engine.support import close
from laplace_lora import LaplaceLoRA, LaplaceLoRAError
from laplace_lora.readouts import AnswerTokens, NextToken
from readouts import dense
from readouts.models import language_model, pad, tiny_lm
from readouts.support import fit, same
from tiny_models import VOCAB, Batch

IGNORED = -100
DELTA = 0.8
NAMES = ["llama", "gpt2", "llama-head", "llama-saved-head", "llama-tied-head"]
Text = dict[str, torch.Tensor]


def texts(count: int, seed: int = 0, vocab: int = VOCAB, longest: int = 8) -> list[Text]:
    """Draw texts, about half of whose tokens are labelled, in several stretches; one has a label on its first."""
    generator = torch.Generator().manual_seed(3_000 + seed)
    drawn = []
    for index in range(count):
        length = int(torch.randint(3, longest + 1, (), generator=generator))
        ids = torch.randint(2, vocab, (length,), generator=generator)
        labelled = torch.rand(length, generator=generator) < 0.6
        labelled[1 + index % (length - 1)] = True
        labelled[0] = index == 0
        drawn.append({"input_ids": ids, "labels": ids.masked_fill(~labelled, IGNORED)})
    return drawn


def collate(examples: list[Text], side: str = "right") -> Batch:
    ids = [example["input_ids"] for example in examples]
    return {
        "input_ids": pad(ids, side),
        "attention_mask": pad([torch.ones_like(row) for row in ids], side, 0),
        "labels": pad([example["labels"] for example in examples], side, IGNORED),
    }


def batches(examples: list[Text], size: int, side: str = "right") -> list[Batch]:
    return [collate(examples[i : i + size], side) for i in range(0, len(examples), size)]


def outputs(model: nn.Module, example: Text) -> torch.Tensor:
    """The sum over labelled tokens of their log-probabilities, each given those before it."""
    logits = dense.run(model, example["input_ids"])
    total = torch.zeros(1, dtype=torch.float64)
    for step in range(1, len(logits)):
        token = int(example["labels"][step])
        if token != IGNORED:
            total = total + logits[step - 1].log_softmax(0)[token]
    return total


@functools.cache
def data() -> tuple[list[Text], list[Text]]:
    return texts(5), texts(4, seed=5)


@functools.cache
def oracle(name: str, structure: str, kfac: str = "fitted") -> oracles.DensePosterior:
    """The posterior of the empirical Fisher: rows are the gradients of every text's log-likelihood."""
    model = language_model(name)
    one = lambda f: torch.ones(1, 1, dtype=torch.float64)  # noqa: E731
    found = dense.posterior(model, data()[0], outputs, structure, kfac=kfac, root=one)
    total = sum(float(outputs(model, example)) for example in data()[0])
    return dataclasses.replace(found, log_likelihood=total)


def assert_equals_oracle(la: LaplaceLoRA, name: str, posterior: oracles.DensePosterior, side: str = "right") -> None:
    means, covariances = dense.functional(posterior, language_model(name), data()[1], outputs, DELTA)
    p = la.predict(collate(data()[1], side))
    assert (p.mean.shape, p.covariance.shape, p.probabilities.shape) == ((4, 1), (4, 1, 1), (4, 0))
    close(p.covariance, torch.stack(covariances))
    close(p.mean, torch.stack(means), 1e-10)


# --- the empirical Fisher -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["kron", "diag"])
@pytest.mark.parametrize("name", NAMES)
def test_empirical_equals_the_oracle(name: str, structure: str) -> None:
    settings = {"structure": structure, "fisher": "empirical", "prior_precision": DELTA}
    la = fit(language_model(name), NextToken(), batches(data()[0], 2, "mixed"), **settings)
    assert_equals_oracle(la, name, oracle(name, structure), "mixed")
    evidence = oracle(name, structure).log_evidence(DELTA)
    assert math.isclose(la.log_marginal_likelihood(), evidence, rel_tol=1e-9)


@pytest.mark.parametrize("kfac", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["llama-head", "gpt2"])
def test_rules_of_the_factors(name: str, kfac: str) -> None:
    """In the output embeddings, the tokens are the positions from which labelled tokens are predicted."""
    settings = {"kfac": kfac, "fisher": "empirical", "prior_precision": DELTA}
    la = fit(language_model(name), NextToken(), batches(data()[0], 3, "mixed"), **settings)
    assert_equals_oracle(la, name, oracle(name, "kron", kfac))


def test_what_fit_says_of_the_training_data() -> None:
    model, (train, _) = language_model("gpt2"), data()
    la = fit(model, NextToken(), batches(train, 2, "mixed"))
    right, total, log_likelihood = 0, 0, 0.0
    for example in train:
        logits = dense.run(model, example["input_ids"])
        for step in range(1, len(logits)):
            if example["labels"][step] != IGNORED:
                right += int(logits[step - 1].argmax() == example["labels"][step])
                total += 1
        log_likelihood += float(outputs(model, example))
    assert la.training is not None
    assert la.training.targets == total
    assert math.isclose(la.training.accuracy, right / total, rel_tol=1e-12)
    assert math.isclose(la.training.log_likelihood, log_likelihood, rel_tol=1e-10)
    assert math.isclose(la.training.nll, -log_likelihood / len(train), rel_tol=1e-10)


# --- sampled tokens -------------------------------------------------------------------------------------------------


def _ggn_diagonal(model: nn.Module, examples: list[Text]) -> torch.Tensor:
    """Return the diagonal of sum_n sum_t J_nt^T (diag(p) - p p^T) J_nt over labelled tokens."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = torch.zeros(sum(parameter.numel() for parameter in trainable), dtype=torch.float64)
    for example in examples:
        logits = dense.run(model, example["input_ids"])
        for step in range(1, len(logits)):
            if example["labels"][step] == IGNORED:
                continue
            f = logits[step - 1]
            rows = [torch.autograd.grad(value, trainable, retain_graph=True) for value in f]
            j = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
            total += torch.einsum("kp,kl,lp->p", j, oracles.hessian(f.detach()), j)
    return total


def test_sampled_tokens_are_unbiased_for_the_ggn() -> None:
    """Over 200 seeds, no weight's mean is off by more than 5 standard errors, nor the trace by more than 4 (or 5 %)."""
    model = tiny_lm(vocab=11, width=8, layers=1, targets=["q_proj", "v_proj", "lm_head"], r=2)
    examples = texts(3, vocab=11, longest=5)
    exact = _ggn_diagonal(model, examples)
    drawn = []
    for seed in range(200):
        la = fit(model, NextToken(), batches(examples, 3), structure="diag", fisher="mc", seed=seed)
        drawn.append(torch.cat([values.flatten() for values in la.posterior.eigenvalues]))
    samples = torch.stack(drawn)
    assert len(torch.unique(samples[:, -1])) > 5
    error = samples.std(0) / math.sqrt(len(samples))
    assert float(((samples.mean(0) - exact).abs() / error).max()) < 5.0
    traces = samples.sum(1)
    off = abs(float(traces.mean() - exact.sum()))
    assert off < 4.0 * float(traces.std()) / math.sqrt(len(samples))
    assert off < 0.05 * float(exact.sum())


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
@pytest.mark.parametrize("structure", ["kron", "diag"])
@pytest.mark.parametrize("name", ["llama-head", "gpt2"])
def test_batch_size_order_and_padding_change_nothing(name: str, structure: str, fisher: str) -> None:
    model, (train, test) = language_model(name), data()
    settings = {"structure": structure, "fisher": fisher, "seed": 4}
    reference = fit(model, NextToken(), batches(train, 5), **settings)
    for examples, size, side in ((train, 1, "right"), (train[::-1], 2, "left"), (train[2:] + train[:2], 4, "mixed")):
        same(fit(model, NextToken(), batches(examples, size, side), **settings), reference, collate(test))
    same(reference, reference, collate(test, "mixed"))
    if fisher == "mc":
        other = fit(model, NextToken(), batches(train, 5), **{**settings, "seed": 5})
        assert not torch.allclose(other.predict(collate(test)).covariance, reference.predict(collate(test)).covariance)


def test_auto_is_sampled_tokens() -> None:
    model, (train, test) = language_model("llama"), data()
    same(
        fit(model, NextToken(), batches(train, 5)),
        fit(model, NextToken(), batches(train, 5), fisher="mc"),
        collate(test),
    )


@pytest.mark.parametrize("fisher", ["mc", "empirical"])
def test_one_forward_and_one_backward_pass(fisher: str, passes: object) -> None:
    model, forward = language_model("llama"), []
    handle = model.get_base_model().register_forward_pre_hook(lambda *_: forward.append(1))
    try:
        la = fit(model, NextToken(), batches(data()[0], 2), fisher=fisher)
        assert (len(forward), passes.backward) == (3, 3)
        la.predict(collate(data()[1]))
        assert (len(forward), passes.backward) == (4, 4)
    finally:
        handle.remove()


def test_unlabelled_tokens_count_for_nothing_but_context() -> None:
    """A text without any label adds nothing, and a longer text's unlabelled end changes nothing."""
    model, (train, test) = language_model("llama"), data()
    settings = {"fisher": "empirical", "structure": "diag"}
    reference = fit(model, NextToken(), batches(train, 5), **settings)
    silent = {"input_ids": torch.tensor([5, 6, 7]), "labels": torch.full((3,), IGNORED)}
    tail = torch.tensor([9, 8])
    longer = [
        {
            "input_ids": torch.cat([example["input_ids"], tail]),
            "labels": torch.cat([example["labels"], torch.full((2,), IGNORED)]),
        }
        for example in train
    ]
    for loader in (batches([*train, silent], 5), batches([silent, *train], 3), batches(longer, 2)):
        la = fit(model, NextToken(), loader, **settings)
        close(la.predict(collate(test)).covariance, reference.predict(collate(test)).covariance, 1e-10)
        assert math.isclose(la.training.log_likelihood, reference.training.log_likelihood, rel_tol=1e-10)
        assert la.training.targets == reference.training.targets
    alone = reference.predict(collate([silent]))
    assert (float(alone.mean), float(alone.covariance)) == (0.0, 0.0)


def test_labels_on_first_tokens_count_for_nothing() -> None:
    """Nothing precedes them, also where padding does."""
    model, (train, test) = language_model("gpt2"), data()
    cut = [{**example, "labels": example["labels"].clone()} for example in train]
    for example in cut:
        example["labels"][0] = IGNORED
    for side in ("left", "right"):
        la = fit(model, NextToken(), batches(train, 5, side))
        same(la, fit(model, NextToken(), batches(cut, 5, side)), collate(test))


def test_tuning_by_the_evidence_and_saving(tmp_path: object) -> None:
    model, (train, test) = language_model("llama"), data()
    la = fit(model, NextToken(), batches(train, 5), fisher="empirical").tune_prior("evidence")
    delta, posterior = la.prior_precision, oracle("llama", "kron")
    assert math.isclose(la.log_marginal_likelihood(), posterior.log_evidence(delta), rel_tol=1e-9)
    for factor in (0.99, 1.01):
        assert posterior.log_evidence(delta * factor) < posterior.log_evidence(delta)
    la.save_pretrained(tmp_path)
    again = LaplaceLoRA.from_pretrained(model, tmp_path)
    assert isinstance(again.readout, NextToken)
    assert again.training.targets == la.training.targets
    same(again, la, collate(test), 1e-12)
    assert again.seen_in_fit(collate([train[1], test[0]], "left")).tolist() == [True, False]


def test_another_readout_of_the_same_posterior() -> None:
    la = fit(language_model("llama"), NextToken(), batches(data()[0], 5))
    batch = {key: value for key, value in collate(data()[1]).items() if key != "labels"}
    p = la.predict(batch, readout=AnswerTokens([3, 4, 5]))
    assert p.probabilities.shape == (4, 3)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", ["exact", "rademacher"])
def test_a_backward_pass_per_token_of_the_vocabulary(fisher: str) -> None:
    with pytest.raises(LaplaceLoRAError, match="use fisher='mc' or 'empirical' with NextToken"):
        fit(language_model("llama"), NextToken(), batches(data()[0], 5), fisher=fisher)


@pytest.mark.parametrize("fisher", ["auto", "mc", "empirical"])
def test_exact_would_not_be_exact(fisher: str) -> None:
    with pytest.raises(LaplaceLoRAError, match="use structure='kron' or 'diag' with NextToken"):
        fit(language_model("llama"), NextToken(), batches(data()[0], 5), structure="exact", fisher=fisher)


def test_labels() -> None:
    good = collate(data()[0])

    def refused(change: dict[str, object], message: str) -> None:
        batch = {key: value for key, value in (good | change).items() if value is not None}
        with pytest.raises(LaplaceLoRAError, match=message):
            fit(language_model("llama"), NextToken(), [batch])

    refused({"labels": None}, "the labels are none; label the tokens that count, and others with -100")
    refused({"labels": torch.zeros(5, dtype=torch.long)}, "the labels are of shape")
    refused(
        {"labels": good["labels"].masked_fill(good["labels"] == IGNORED, 3)}, "padding positions .* set them to -100"
    )
    refused({"labels": good["labels"].masked_fill(good["labels"] != IGNORED, VOCAB)}, "has 50; use its own tokenizer")
    refused({"labels": good["labels"].masked_fill(good["labels"] != IGNORED, -1)}, "has 50; use its own tokenizer")
    refused({"labels": good["labels"].double()}, "give whole numbers")
    la = fit(language_model("llama"), NextToken(), [good])
    with pytest.raises(LaplaceLoRAError, match="label the tokens that count"):
        la.predict({key: value for key, value in good.items() if key != "labels"})
    with pytest.raises(LaplaceLoRAError, match=r"use the evidence: tune_prior\('evidence'\)"):
        la.tune_prior("validation", [good])
    with pytest.raises(LaplaceLoRAError, match="read mean and covariance"):
        _ = la.predict(good).prediction


def test_factors_of_a_vocabulary_are_refused_by_name() -> None:
    """A factor of 50 x 50 float64 numbers takes 20,000 bytes; LoRA on the output embeddings has one."""
    model = language_model("llama-head")
    with pytest.raises(
        LaplaceLoRAError, match=r"20000 bytes for a factor of \S*lm_head.lora_B, 50 wide.*structure='diag'"
    ):
        fit(model, NextToken(), batches(data()[0], 5), memory_limit_bytes=19_999)
    fit(model, NextToken(), batches(data()[0], 5), memory_limit_bytes=20_000)
    fit(model, NextToken(), batches(data()[0], 5), memory_limit_bytes=0, structure="diag")
    fit(
        model,
        AnswerTokens([3, 4]),
        [batches(data()[0], 5)[0] | {"labels": torch.zeros(5).long()}],
        memory_limit_bytes=3_000,
    )
