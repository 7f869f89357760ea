"""OptionScores: options scored one by one, for a multiple-choice encoder and for causal language models."""

import functools
import math

import peft
import pytest
import torch

import oracles
from engine.support import close
from laplace_lora import LaplaceLoRA, LaplaceLoRAError
from laplace_lora.predictive import Predictive
from laplace_lora.prior import training_fit
from laplace_lora.prior.joint import LEVEL, LEVEL_SD, TEMPERATURE_SD
from laplace_lora.readouts import OptionScores
from readouts import dense
from readouts.models import collate_options, language_model, multiple_choice, option_batches, option_examples
from readouts.support import each_close, fit, same

# Within a batch and between batches: the second has two options at the most, the third one.
COUNTS = (4, 2, 2, 2, 1, 1, 3)
TEST_COUNTS = (3, 1, 4, 2)
DELTA = 0.6

# name -> (model, settings of the readout)
CASES = {
    "encoder": ("encoder", "none"),
    "llama-sum": ("llama", "none"),
    "llama-tokens": ("llama", "tokens"),
    "gpt2-characters": ("gpt2", "characters"),
    "head-sum": ("llama-head", "none"),
    "tied-tokens": ("llama-tied-head", "tokens"),
}


@functools.cache
def data() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    return option_examples(COUNTS), option_examples(TEST_COUNTS, seed=9)


def model_of(case: str) -> peft.PeftModel:
    name = CASES[case][0]
    return multiple_choice() if name == "encoder" else language_model(name)


def outputs_of(case: str) -> dense.Outputs:
    return dense.choice_logits if case == "encoder" else dense.option_scores(CASES[case][1])


def batches(case: str, examples: list[dict[str, object]], size: int, side: str = "right") -> list[dict]:
    return option_batches(examples, size, side=side, completion=case != "encoder")


def fitted(case: str, size: int = 2, side: str = "right", **settings: object) -> LaplaceLoRA:
    readout = OptionScores(CASES[case][1])
    return fit(model_of(case), readout, batches(case, data()[0], size, side), prior_precision=DELTA, **settings)


@functools.cache
def oracle(case: str, structure: str, kfac: str = "fitted") -> oracles.DensePosterior:
    label = lambda example: torch.tensor(example["label"])  # noqa: E731
    return dense.posterior(model_of(case), data()[0], outputs_of(case), structure, kfac=kfac, label=label)


@functools.cache
def jacobians(case: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    model = model_of(case)
    return [dense.jacobian(model, example, outputs_of(case), oracles.blocks(model)) for example in data()[1]]


def expected(case: str, covariance: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [f for f, _ in jacobians(case)], [j @ covariance @ j.T for _, j in jacobians(case)]


def assert_equals_oracle(la: LaplaceLoRA, case: str, posterior: oracles.DensePosterior, delta: float = DELTA) -> None:
    means, covariances = expected(case, posterior.covariance(delta))
    p = la.predict_dataset(batches(case, data()[1], 3))
    assert p.mean.shape == (4, 4)
    each_close(p.covariance, covariances)
    each_close(p.mean, means, 1e-10)
    for row, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
        size = len(mean)
        assert bool((p.probabilities[row, size:] == 0).all())
        assert bool(torch.isneginf(p.mean[row, size:]).all())
        if size == 1:
            assert float(p.probabilities[row, 0]) == 1.0
            continue
        alone = Predictive.from_gaussian(mean[None], covariance[None])
        torch.testing.assert_close(p.probabilities[row, :size], alone.probabilities[0], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(p.map_probabilities[row, :size], mean.softmax(0), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(p.mutual_information[row], alone.mutual_information[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("structure", ["kron", "ekfac", "diag", "exact", "low_rank", "kron_low_rank", "isotropic"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_oracle(case: str, structure: str) -> None:
    la = fitted(case, structure=structure)
    assert_equals_oracle(la, case, oracle(case, structure))
    assert math.isclose(la.log_marginal_likelihood(), oracle(case, structure).log_evidence(DELTA), rel_tol=1e-9)
    assert la.training is not None
    assert (la.training.examples, la.training.classes) == (7, 4)


@pytest.mark.parametrize("structure", ["kron", "exact"])
@pytest.mark.parametrize("case", ["encoder", "llama-tokens"])
def test_covariances_between_examples(case: str, structure: str) -> None:
    """Batches of two: the first has three options at the most, the second four."""
    joint = fitted(case, structure=structure).predict_joint(batches(case, data()[1], 2))
    assert joint.covariance.shape == (4, 4, 4, 4)
    covariance = oracle(case, structure).covariance(DELTA)
    rows = [j for _, j in jacobians(case)]
    for i, first in enumerate(rows):
        each_close(joint.covariance[i].transpose(0, 1), [first @ covariance @ second.T for second in rows])


@pytest.mark.parametrize("kfac", ["expand"])
@pytest.mark.parametrize("case", ["encoder", "llama-sum", "head-sum"])
def test_rules_of_the_factors(case: str, kfac: str) -> None:
    """An example's tokens are those of all its options."""
    assert_equals_oracle(fitted(case, kfac=kfac), case, oracle(case, "kron", kfac))


@pytest.mark.parametrize("fisher", ["exact", "rademacher", "mc", "empirical"])
@pytest.mark.parametrize("structure", ["kron", "diag"])
@pytest.mark.parametrize("case", ["encoder", "llama-tokens"])
def test_batch_size_order_and_padding_change_nothing(case: str, structure: str, fisher: str) -> None:
    train, test = data()
    readout, model = OptionScores(CASES[case][1]), model_of(case)
    settings = {"structure": structure, "fisher": fisher, "seed": 3}
    reference = fit(model, readout, batches(case, train, 7), **settings)
    batch = batches(case, test, 4)[0]
    for examples, size in ((train, 1), (train[::-1], 2), (train[4:] + train[:4], 3)):
        same(fit(model, readout, batches(case, examples, size), **settings), reference, batch)
    if case != "encoder":
        for side in ("left", "mixed"):
            same(fit(model, readout, batches(case, train, 3, side), **settings), reference, batch)
            same(reference, reference, batches(case, test, 4, side)[0])


def test_batches_wider_and_longer_than_needed() -> None:
    train, test = data()
    model, readout = language_model("llama"), OptionScores()
    wide = collate_options(train, width=6)
    for key in ("input_ids", "attention_mask", "completion_mask"):
        wide[key] = torch.nn.functional.pad(wide[key], (0, 3))
    la = fit(model, readout, [wide], structure="exact")
    same(la, fit(model, readout, option_batches(train, 2), structure="exact"), collate_options(test))
    p = la.predict(collate_options(test, width=6))
    close(p.covariance[:, :4, :4], la.predict(collate_options(test)).covariance)
    assert float(p.covariance[:, 4:].abs().max()) == 0.0


def test_labels_one_at_a_time_are_the_empirical_fisher() -> None:
    """Rows e_y - p of the data's labels, combined over the options."""
    case = "llama-sum"

    def posterior() -> oracles.DensePosterior:
        model, total = model_of(case), None
        among = oracles.blocks(model)
        for example in data()[0]:
            f, j = dense.jacobian(model, example, outputs_of(case), among)
            row = (torch.eye(len(f), dtype=f.dtype)[example["label"]] - f.softmax(0)) @ j
            total = torch.outer(row, row) if total is None else total + torch.outer(row, row)
        reference = oracle(case, "diag")
        return oracles.DensePosterior(
            reference.blocks, reference.sizes, torch.diag(total.diagonal()), reference.mean, reference.log_likelihood
        )

    assert_equals_oracle(fitted(case, structure="diag", fisher="empirical"), case, posterior())


@pytest.mark.parametrize("fisher", ["exact", "rademacher", "mc", "empirical"])
@pytest.mark.parametrize("case", ["encoder", "llama-sum", "llama-tokens"])
def test_one_backward_pass_for_all_options(case: str, fisher: str, passes: object) -> None:
    model, forward = model_of(case), []
    handle = model.get_base_model().register_forward_pre_hook(lambda *_: forward.append(1))
    try:
        la = fitted(case, size=3, fisher=fisher)
        assert (len(forward), passes.backward) == (3, 3)
        la.predict_dataset(batches(case, data()[1], 2))
        assert (len(forward), passes.backward) == (5, 5)
        la.tune_prior("validation", batches(case, data()[1], 2))
        assert (len(forward), passes.backward) == (7, 7)
        la.tune_prior("evidence")
        assert (len(forward), passes.backward) == (7, 7)
    finally:
        handle.remove()


@pytest.mark.parametrize("structure", ["kron", "exact"])
def test_tuning_by_the_evidence(structure: str) -> None:
    la = fitted("llama-tokens", structure=structure).tune_prior("evidence")
    delta, posterior = la.prior_precision, oracle("llama-tokens", structure)
    assert math.isclose(la.log_marginal_likelihood(), posterior.log_evidence(delta), rel_tol=1e-9)
    for factor in (0.99, 1.01):
        assert posterior.log_evidence(delta * factor) < posterior.log_evidence(delta)
    assert_equals_oracle(la, "llama-tokens", posterior, delta)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_tuning_on_held_out_data_of_different_widths(size: int) -> None:
    """Precision and temperature are no worse than any of a grid, by the dense oracle."""
    case = "llama-tokens"
    la = fitted(case).tune_prior("validation", batches(case, data()[1], size))

    def objective(precision: float, temperature: float) -> float:
        means, covariances = expected(case, oracle(case, "kron").covariance(precision))
        total = 0.0
        for mean, covariance, example in zip(means, covariances, data()[1], strict=True):
            if len(mean) > 1:
                p = Predictive.from_gaussian(mean[None] / temperature, covariance[None]).probabilities
                total -= float(p[0, example["label"]].log())
        level = math.log(precision / (LEVEL * DELTA)) / LEVEL_SD
        return total + 0.5 * (level**2 + (math.log(temperature) / TEMPERATURE_SD) ** 2)

    reached = objective(la.prior_precision, la.temperature)
    for scale in (1e-2, 1.0, 1e1, 1e2, 1e3, 1e5):
        for temperature in (0.7, 1.0, 1.4, 2.0):
            assert reached <= objective(DELTA * scale, temperature) + 1e-3 * len(data()[1])


def test_saved_and_loaded(tmp_path: object) -> None:
    la = fitted("gpt2-characters").tune_prior("evidence")
    la.save_pretrained(tmp_path)
    again = LaplaceLoRA.from_pretrained(model_of("gpt2-characters"), tmp_path)
    assert isinstance(again.readout, OptionScores)
    assert again.readout.normalise == "characters"
    same(again, la, collate_options(data()[1]), 1e-12)
    seen = again.seen_in_fit(collate_options([data()[0][3], data()[1][0]]))
    assert seen.tolist() == [True, False]


def test_full_vocabulary_logits_only_where_texts_are_predicted() -> None:
    model, seen = language_model("llama"), []
    head = model.get_base_model().get_output_embeddings()
    handle = head.register_forward_hook(lambda _, args, output: seen.append(tuple(args[0].shape)))
    try:
        fitted("llama-sum", size=7)
    finally:
        handle.remove()
    longest = max(len(text) for example in data()[0] for text in example["texts"])
    assert seen == [(sum(COUNTS), longest, 16)]


# --- what is refused -----------------------------------------------------------------------------------------------


def _refused(batch: dict[str, torch.Tensor], message: str, normalise: str = "none", name: str = "llama") -> None:
    with pytest.raises(LaplaceLoRAError, match=message):
        fit(language_model(name), OptionScores(normalise), [batch])


def test_labels_of_absent_options() -> None:
    batch = collate_options(data()[0])
    batch["labels"][1] = 3
    _refused(batch, "a label names an option that its example does not have; check the label column")
    batch["labels"][1] = 4
    _refused(batch, "whole numbers from 0 to 3")
    la = fitted("llama-sum")
    with pytest.raises(LaplaceLoRAError, match="check the label column"):
        la.tune_prior("validation", [batch])


def test_completion_masks() -> None:
    good = collate_options(data()[0])
    missing = {key: value for key, value in good.items() if key != "completion_mask"}
    _refused(missing, "completion_mask, which says where an option's text is; add it")
    mask = good["completion_mask"].clone()
    mask[0, 0, 0] = 1
    _refused(good | {"completion_mask": mask}, "begin inputs with a context")
    _refused(good | {"completion_mask": torch.zeros_like(mask)}, "begin inputs with a context")
    _refused(good | {"completion_mask": torch.ones_like(mask)}, "marks padding positions; set them to 0")
    _refused(good | {"completion_mask": mask[..., :-1]}, "completion_mask has shape .* collate it as the inputs are")
    at_left = collate_options(data()[0], "left")
    first = at_left["attention_mask"][0, 0].argmax()
    at_left["completion_mask"][0, 0, first] = 1
    _refused(at_left, "begin inputs with a context")


def test_lengths() -> None:
    good = collate_options(data()[0])
    missing = {key: value for key, value in good.items() if key != "option_lengths"}
    _refused(missing, "add 'option_lengths'", "characters")
    _refused(good | {"option_lengths": good["option_lengths"][:, :2]}, "option_lengths has shape", "characters")
    _refused(good | {"option_lengths": good["option_lengths"][:, 0]}, "option_lengths has shape", "characters")
    zero = torch.zeros_like(good["option_lengths"])
    _refused(good | {"option_lengths": zero}, "give the number of its characters", "characters")


def test_shapes_and_empty_options() -> None:
    good = collate_options(data()[0])
    _refused({key: value[:, 0] for key, value in good.items() if value.dim() == 3}, "expects inputs of shape")
    first = good["attention_mask"].clone()
    first[2, 0] = 0
    _refused(good | {"attention_mask": first}, "list the options first, padding last")


def test_settings_and_models() -> None:
    with pytest.raises(LaplaceLoRAError, match="choose one of none, tokens, characters"):
        OptionScores("words")
    with pytest.raises(LaplaceLoRAError, match="leave it out"):
        LaplaceLoRA(multiple_choice(), readout=OptionScores("tokens"))
    la = fitted("llama-sum")
    with pytest.raises(LaplaceLoRAError, match="one backward pass serves all options; leave it out"):
        la.predict(collate_options(data()[1]), top_k=2)


def test_encoders_are_padded_on_the_right() -> None:
    with pytest.raises(LaplaceLoRAError, match="padding_side='right'"):
        fit(multiple_choice(), OptionScores(), [collate_options(data()[0], "left", completion=False)])


# --- the sample of training examples that the evidence's result is checked on -----------------------------------------


@pytest.mark.parametrize("budget", [2**28, 17_000])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_checked_sample_follows_from_the_data_alone(size: int, budget: int) -> None:
    case, train = "llama-tokens", data()[0]
    readout, model = OptionScores("tokens"), model_of("llama-tokens")
    checks = [
        fit(model, readout, batches(case, examples, n), train_check_bytes=budget)._state.check
        for examples, n in ((train, 7), (train[::-1], size))
    ]
    assert len(checks[0].labels) == (5 if budget > 17_000 else 4)
    for name in ("logits", "labels", "directions"):
        torch.testing.assert_close(getattr(checks[1], name), getattr(checks[0], name), rtol=1e-9, atol=1e-12)
    for one, other in zip(*(check.jacobians for check in checks), strict=True):
        close(one, other)


@pytest.mark.parametrize("structure", ["kron", "exact"])
def test_the_checked_sample_has_the_covariance_that_is_predicted(structure: str) -> None:
    """Of differences between an example's own options, the only ones that probabilities depend on."""
    la = fitted("llama-tokens", structure=structure)
    found = training_fit(la.posterior, torch.tensor([DELTA], dtype=torch.float64), la._state.check)
    p = la.predict(collate_options(data()[0]))
    for mean, covariance in zip(found.mean, found.covariance, strict=True):
        (row,) = [i for i, other in enumerate(p.mean) if torch.allclose(other, mean, rtol=1e-9)]
        size = COUNTS[row]
        own = covariance[:size, :size]
        close(dense.centred(own), dense.centred(p.covariance[row, :size, :size]))
