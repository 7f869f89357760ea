"""All methods by their table; MAP, temperature and Laplace against the library used by hand."""

import inspect
import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from laplace_lora.evaluation import Logits
from laplace_lora.methods import fit_temperature
from laplace_lora.methods.base import Answers, Stopwatch, Subject
from laplace_lora.methods.forward import class_logits
from laplace_lora.methods.table import METHODS
from laplace_lora.readouts import OptionScores
from methods.subjects import TRAIN, Left, moved, subject
from readouts.models import multiple_choice, option_batches, option_examples
from tiny_models import batches, random_examples, tiny_bert

TEST, HELD_OUT = batches(random_examples(7, seed=1), 3), batches(random_examples(9, seed=2), 4)
CLASSES = 3


def by_hand(model: Any, **settings: Any) -> LaplaceLoRA:
    return LaplaceLoRA(model, LaplaceConfig(progress=False, **settings)).fit(batches(TRAIN, 3))


def logits(model: Any, data: list[dict[str, torch.Tensor]]) -> np.ndarray:
    with torch.no_grad():
        found = [model.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits for batch in data]
    return torch.cat(found).double().numpy()


def test_names_are_distinct_and_every_method_says_what_it_is() -> None:
    assert all(name == method.name for name, method in METHODS.items())
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    assert all((inspect.getdoc(type(method)) or "").partition("\n\n")[0].endswith(".") for method in METHODS.values())
    json.dumps([method.settings() for method in METHODS.values()], allow_nan=False)


def test_map() -> None:
    model = tiny_bert()
    found = METHODS["map"].fit(subject(model)).answer(TEST)
    np.testing.assert_allclose(found.probabilities.values, softmax(logits(model, TEST), axis=1), rtol=0, atol=1e-12)
    assert found.mutual_information is None


def test_temperature() -> None:
    model = tiny_bert()
    fitted = METHODS["temperature"].fit(subject(model, held_out=HELD_OUT))
    labels = np.concatenate([batch["labels"].numpy() for batch in HELD_OUT])
    expected = fit_temperature(Logits(logits(model, HELD_OUT)), labels)
    assert fitted.found == {"temperature": pytest.approx(expected, rel=1e-9)}
    np.testing.assert_allclose(
        fitted.answer(TEST).probabilities.values, softmax(logits(model, TEST) / expected, axis=1), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    ("name", "settings", "tuned"),
    [
        ("laplace", {}, "auto"),
        ("laplace_evidence", {}, "evidence"),
        ("laplace_official", {"kfac": "official"}, "evidence"),
        ("laplace_kron_low_rank", {"structure": "kron_low_rank"}, "evidence"),
        ("llla", {"structure": "last_layer"}, "evidence"),
        ("laplace_validation", {}, ("validation", HELD_OUT)),
    ],
)
def test_laplace_is_the_library(name: str, settings: dict[str, Any], tuned: Any) -> None:
    model = tiny_bert()
    start = moved(model, 1)
    fitted = METHODS[name].fit(subject(model, held_out=HELD_OUT, start=start))
    la = by_hand(model, **settings)
    la.tune_prior(tuned, starting_point=start) if name == "laplace" else la.tune_prior(tuned)
    expected = la.predict_dataset(TEST)
    found = fitted.answer(TEST)
    assert fitted.found["prior_precision"] == pytest.approx(la.prior_precision, rel=1e-9)
    assert fitted.stored_bytes == la.posterior.nbytes
    np.testing.assert_allclose(found.probabilities.values, expected.probabilities.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.mutual_information, expected.mutual_information.numpy(), rtol=0, atol=1e-12)


def test_a_second_soft_max() -> None:
    model = tiny_bert()
    right = METHODS["laplace_official"].fit(subject(model)).answer(TEST).probabilities.values
    wrong = METHODS["softmax_twice"].fit(subject(model)).answer(TEST)
    np.testing.assert_allclose(wrong.probabilities.values, softmax(right, axis=1), rtol=0, atol=1e-12)
    assert wrong.mutual_information is None
    band = 1.0 / (CLASSES - 1 + np.e), np.e / (CLASSES - 1 + np.e)
    assert (wrong.probabilities.values > band[0]).all()
    assert (wrong.probabilities.values < band[1]).all()


def test_a_second_soft_max_leaves_absent_options_out() -> None:
    counts = [2, 4, 3, 4, 2, 3]
    loader = option_batches(option_examples(counts), 3)
    one = Subject(multiple_choice(), OptionScores(), loader)  # type: ignore[arg-type]
    values = METHODS["softmax_twice"].fit(one).answer(loader).probabilities.values
    assert [int((row > 0.0).sum()) for row in values] == counts
    right = METHODS["laplace_official"].fit(one).answer(loader).probabilities.values
    for row, expected, count in zip(values, right, counts, strict=True):
        np.testing.assert_allclose(row[:count], softmax(expected[:count]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["map", "temperature", "laplace", "llla", "laplace_validation", "softmax_twice"])
def test_the_model_is_left_as_it_was_found(name: str) -> None:
    model = tiny_bert()
    left = Left(model)
    METHODS[name].fit(subject(model, held_out=HELD_OUT)).answer(TEST)
    left.check()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_held_out])
def test_held_out_rows_are_asked_for(name: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=r"give Subject\(held_out=...\)"):
        METHODS[name].fit(subject(tiny_bert()))


def test_logits_without_and_with_some_labels() -> None:
    model = tiny_bert()
    bare = [{key: value for key, value in batch.items() if key != "labels"} for batch in TEST]
    assert class_logits(model, subject(model).readout, bare)[1] is None
    with pytest.raises(LaplaceLoRAError, match="give all or none"):
        class_logits(model, subject(model).readout, [TEST[0], bare[1]])
    with pytest.raises(LaplaceLoRAError, match="no examples"):
        class_logits(model, subject(model).readout, [])


def test_members_are_averaged_in_probability() -> None:
    members = np.random.default_rng(0).dirichlet(np.ones(4), size=(5, 6))
    found = Answers.of_members(members)
    np.testing.assert_allclose(found.probabilities.values, members.mean(axis=0), rtol=0, atol=1e-15)
    expected = entropy(members.mean(axis=0), axis=1) - entropy(members, axis=2).mean(axis=0)
    np.testing.assert_allclose(found.mutual_information, expected, rtol=0, atol=1e-12)
    assert (Answers.of_members(members[:1]).mutual_information == 0.0).all()


def test_a_stopwatch_adds() -> None:
    watch = Stopwatch()
    watch.add("fit", 1.0)
    watch.add("fit", 2.0)
    with watch.watch("tune"):
        pass
    assert watch.seconds["fit"] == 3.0
    assert watch.seconds["tune"] >= 0.0
