"""``tune_prior``: what is chosen against recomputation by the model, what is kept, and what is refused."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from engine.counting import Passes, counted_model
from engine.support import close, fitted, setting
from laplace_lora import LaplaceConfig, LaplaceLoRA, Scalar
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.predictive import expected_softmax
from laplace_lora.prior.joint import LEVEL, LEVEL_SD, TEMPERATURE_SD
from tiny_models import MODELS, Example, batches, collate, random_examples

HELD_OUT = random_examples(12, seed=21)
LABELS = torch.stack([example["labels"] for example in HELD_OUT])


def _start(model: peft.PeftModel) -> dict[str, Tensor]:
    """A state dict of the same keys: lora_B at zero, and another lora_A and head."""
    generator = torch.Generator().manual_seed(4)
    return {
        key: torch.zeros_like(value) if "lora_B" in key else value + 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in peft.get_peft_model_state_dict(model).items()
    }


STRUCTURES = ("kron", "exact", "diag", "low_rank", "kron_low_rank", "last_layer")


@pytest.mark.parametrize("options", [{"structure": name} for name in STRUCTURES])
def test_validation_is_no_worse_than_any_prior_and_temperature_that_is_recomputed(options: dict[str, Any]) -> None:
    """The model is run again at every point of a grid; what is minimised is N NLL and the weak prior."""
    model, train, _ = setting()
    la = fitted(model, train, **options)

    def objective(precision: float, temperature: float) -> float:
        there = fitted(model, train, prior_precision=precision, **options).predict_dataset(batches(HELD_OUT, 5))
        p, _ = expected_softmax(there.mean / temperature, there.covariance)
        nll = -p.gather(1, LABELS[:, None]).log().sum()
        level = (math.log(precision) - math.log(LEVEL)) / LEVEL_SD
        return float(nll) + 0.5 * (level**2 + (math.log(temperature) / TEMPERATURE_SD) ** 2)

    la.tune_prior("validation", batches(HELD_OUT, 4))
    reached = objective(float(la.prior_precision), la.temperature)
    for precision in (0.01, 0.3, 3.0, 30.0, 1e3, 1e5):
        for temperature in (0.6, 1.0, 1.7, 3.0):
            assert reached <= objective(precision, temperature) + 1e-3 * len(HELD_OUT)


@pytest.mark.parametrize("groups", ["role", "module"])
def test_groups_are_chosen_together_and_exactly_only_by_a_common_factor(groups: str) -> None:
    model, train, _ = setting()
    la = fitted(model, train, prior_groups=groups)
    la.tune_prior("validation", batches(HELD_OUT, 4))
    assert len(set(la.prior_precision.values())) > 1
    # The full GGN has other eigenvectors at every ratio of precisions: there the ratios stay.
    exact = fitted(model, train, prior_groups=groups, structure="exact")
    exact.tune_prior("validation", batches(HELD_OUT, 4))
    assert len({round(value, 9) for value in exact.prior_precision.values()}) == 1


def test_roles_are_lora_a_lora_b_and_head() -> None:
    model, train, _ = setting()
    la = fitted(model, train, prior_groups="role")
    assert list(la.prior_precision) == ["lora_A", "lora_B", "head"]
    assert list(fitted(MODELS["llama"](3), train, prior_groups="role").prior_precision)[:2] == ["lora_A", "lora_B"]


def test_one_pass_over_the_held_out_data_and_none_afterwards(passes: Passes) -> None:
    model = counted_model(MODELS["bert"](3), passes)
    la = LaplaceLoRA(model, LaplaceConfig(progress=False)).fit(batches(random_examples(12), 4))
    held_out = batches(HELD_OUT, 4)
    passes.take()
    found = la._state.held_out(model, held_out)
    assert passes.take() == (len(held_out), 2 * len(held_out))
    # Derivatives of the score are autograd's too, but of no pass through the model.
    la._state.by_held_out([found, found], "cross_fit", "nll", tune_temperature=True)
    assert passes.take()[0] == 0
    la.tune_prior("validation", held_out)
    assert passes.take()[0] == len(held_out)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_predictions_divide_the_mean_and_nothing_else(name: str) -> None:
    model, train, test = setting(name)
    la = fitted(model, train)
    la.tune_prior("validation", batches(HELD_OUT, 4))
    assert la.temperature != 1.0
    found = la.predict(collate(test))
    plain = fitted(model, train, prior_precision=la.prior_precision).predict(collate(test))
    close(found.covariance, plain.covariance, 1e-12)
    close(found.mean, plain.mean, 1e-12)
    close(found.map_probabilities, plain.map_probabilities, 1e-12)
    expected, entropy = expected_softmax(plain.mean / la.temperature, plain.covariance)
    close(found.probabilities, expected, 1e-12)
    close(found.aleatoric_entropy, entropy, 1e-12)
    every = la.predict(collate(test), top_k=3)
    close(every.probabilities, found.probabilities, 1e-6)
    two = la.predict(collate(test), top_k=2)
    neglected = torch.softmax(plain.mean / la.temperature, dim=1).amin(dim=1)
    close(two.neglected_mass, neglected, 1e-10)
    close(two.probabilities.sum(dim=1), torch.ones(len(test)), 1e-12)


def test_what_was_chosen_is_saved(tmp_path: Path) -> None:
    model, train, test = setting()
    la = fitted(model, train, prior_groups="role")
    la.tune_prior("validation", batches(HELD_OUT, 4))
    assert f"{la.temperature:.4g}" in la.summary()
    la.save_pretrained(tmp_path / "validation")
    again = LaplaceLoRA.from_pretrained(model, tmp_path / "validation")
    assert again.temperature == la.temperature
    close(again.predict(collate(test)).probabilities, la.predict(collate(test)).probabilities, 1e-12)

    la.tune_prior("evidence", starting_point=_start(model))
    assert la.temperature == 1.0
    la.save_pretrained(tmp_path / "evidence")
    again = LaplaceLoRA.from_pretrained(model, tmp_path / "evidence")
    assert again.temperature == 1.0
    assert again.log_marginal_likelihood() == pytest.approx(la.log_marginal_likelihood(), rel=1e-12)
    assert "evidence" in again.summary()


def test_cross_fitting_is_validation_on_all_folds_together() -> None:
    """Two estimators of the same posterior, a part of the data each: the choice is that of all data at once."""
    model, train, _ = setting()
    held_out = batches(HELD_OUT, 4)
    whole, parts = fitted(model, train), fitted(model, train)
    whole.tune_prior("validation", held_out)
    parts.tune_prior(("cross_fit", ((fitted(model, train), part) for part in (held_out[:1], held_out[1:]))))
    assert float(parts.prior_precision) == pytest.approx(float(whole.prior_precision), rel=1e-3)
    assert parts.temperature == pytest.approx(whole.temperature, rel=1e-4)
    assert "cross-fit" in parts.summary()


@pytest.mark.parametrize("structure", ["kron", "exact"])
def test_cross_fitting_tunes_by_what_the_folds_say(structure: str) -> None:
    """The folds' adapters, not the one at hand, are asked; with groups `exact` takes multiples of its own."""
    model, train, _ = setting()
    other = MODELS["bert"](3)
    la = fitted(model, train, structure=structure, prior_groups="role")
    folds = [(fitted(other, train[i:], structure=structure, prior_groups="role"), batches(HELD_OUT, 4)) for i in (1, 2)]
    la.tune_prior("cross_fit", folds)
    mine = fitted(model, train, structure=structure, prior_groups="role")
    mine.tune_prior("validation", batches(HELD_OUT, 4))
    assert la.temperature != mine.temperature
    assert math.isfinite(la.temperature)


def _distances(model: peft.PeftModel, start: Mapping[str, Tensor], la: LaplaceLoRA) -> dict[str, float]:
    """|theta - theta_0|^2 by role, from the state dicts alone."""
    sums: dict[str, float] = {}
    for key, value in peft.get_peft_model_state_dict(model).items():
        role = next((name for name in ("lora_A", "lora_B") if name in key), "head")
        sums[role] = sums.get(role, 0.0) + float((value.double() - start[key].double()).square().sum())
    return sums


def test_the_evidence_can_be_centred_on_the_starting_point() -> None:
    """Its maximum is where gamma = delta |theta - theta_0|^2, group by group, and the model is as before."""
    model, train, _ = setting()
    before = {key: value.clone() for key, value in peft.get_peft_model_state_dict(model).items()}
    start = _start(model)
    la = fitted(model, train, prior_groups="role")
    la.tune_prior("evidence", starting_point=start)
    after = peft.get_peft_model_state_dict(model)
    assert all(torch.equal(before[key], after[key]) for key in before)
    distances = _distances(model, start, la)
    precision = torch.tensor(list(la.prior_precision.values()), dtype=torch.float64)
    gamma = la.posterior.effective_parameters(precision)
    for name, one, value in zip(la.prior_precision, precision.tolist(), gamma.tolist(), strict=True):
        assert one * distances[name] == pytest.approx(value, rel=1e-6)
    occam = la.posterior.log_determinant(precision)
    quadratic = sum(one * distances[name] for name, one in la.prior_precision.items())
    expected = la.training.log_likelihood - 0.5 * quadratic - 0.5 * occam
    assert la.log_marginal_likelihood() == pytest.approx(expected, rel=1e-10)


def test_the_adapters_own_weights_as_starting_point_are_all_prior() -> None:
    """An adapter that has not moved needs no room: the precision ends at its bound."""
    model, train, _ = setting()
    la = fitted(model, train)
    la.tune_prior("evidence", starting_point=peft.get_peft_model_state_dict(model))
    assert float(la.prior_precision) > 1e9


@pytest.mark.parametrize(
    ("method", "data", "options", "words"),
    [
        ("cross_fit", None, {}, "without data"),
        ("evidence", [], {}, "with data"),
        ("folds", None, {}, "not known"),
        ("cross_fit", [], {}, "two folds or more"),
        ("validation", [], {"score": "accuracy"}, "nll, brier, ece"),
        ("evidence", None, {"score": "ece"}, "no score"),
        ("evidence", None, {"temperature": False}, "no temperature"),
        ("validation", [], {"starting_point": {}}, "leave it out"),
        ("evidence", None, {"starting_point": {}}, "not this adapter's"),
    ],
)
def test_what_makes_no_sense_is_refused(method: str, data: Any, options: dict[str, Any], words: str) -> None:
    model, train, _ = setting()
    la = fitted(model, train)
    with pytest.raises(LaplaceLoRAError, match=words):
        la.tune_prior(method, data, **options)
    assert la.temperature == 1.0


def test_a_fold_of_another_kind_is_refused() -> None:
    model, train, _ = setting()
    la, other = fitted(model, train), fitted(model, train, prior_groups="module")
    with pytest.raises(LaplaceLoRAError, match="same configuration"):
        la.tune_prior("cross_fit", [(other, batches(HELD_OUT, 4))])


def test_real_outputs_are_not_cross_fitted() -> None:
    def examples(count: int) -> list[Example]:
        return [{**example, "labels": torch.tensor(0.5)} for example in random_examples(count)]

    la = LaplaceLoRA(MODELS["bert"](1), LaplaceConfig(progress=False), Scalar()).fit(batches(examples(6), 3))
    with pytest.raises(LaplaceLoRAError, match="classes"):
        la.tune_prior("cross_fit", [(la, batches(examples(3), 3))] * 2)


@pytest.mark.parametrize("structure", ["kron", "exact", "diag"])
def test_auto_keeps_the_answers_of_many_classes(structure: str, tmp_path: Path) -> None:
    """Also after saving and loading; other ways of tuning, which see held-out rows or follow the paper, do not."""
    model, train, _ = setting("bert", 4)
    few = random_examples(30, 4, seed=5)
    la = fitted(model, train, structure=structure, prior_precision=1e-3)
    wide = la.predict_dataset(batches(few, 5))
    assert not la.keeps_answers
    assert (wide.prediction != wide.mean.argmax(dim=1)).any(), "the question did not arise"
    la.tune_prior("auto")
    assert la.keeps_answers
    assert "answers are the trained adapter's" in la.summary()
    found = la.predict_dataset(batches(few, 5))
    assert torch.equal(found.prediction, found.mean.argmax(dim=1))
    la.save_pretrained(tmp_path)
    again = LaplaceLoRA.from_pretrained(model, tmp_path)
    assert again.keeps_answers
    close(again.predict_dataset(batches(few, 7)).probabilities, found.probabilities)
    la.tune_prior("evidence")
    assert not la.keeps_answers
