"""MC dropout: all masks of one dropout enumerated, the whole model in training mode, and what is left."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor, nn

from laplace_lora import LaplaceLoRAError
from laplace_lora.methods.base import Subject
from laplace_lora.methods.mc_dropout import McDropout
from laplace_lora.readouts import OptionScores
from methods.subjects import TEST, Left, information, subject
from readouts.models import option_batches, option_examples, tiny_multiple_choice
from tiny_models import batches, tiny_bert, tiny_gpt2, tiny_llama

MODELS = {"bert": tiny_bert, "gpt2": tiny_gpt2, "llama": tiny_llama}
DATA = batches(TEST, 3)


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def members_of(model: Any, samples: int, data: list[dict[str, Tensor]] = DATA, seed: int = 0) -> np.ndarray:
    """Members one by one, from answers for more and more of them: every answer's sum is one longer."""
    answers = [
        McDropout(s).fit(subject(model, seed=seed)).answer(data).probabilities.values for s in range(1, samples + 1)
    ]
    sums = np.stack([(index + 1) * value for index, value in enumerate(answers)])
    return np.diff(sums, axis=0, prepend=0.0)


def test_against_all_masks_of_one_dropout() -> None:
    # One dropout, before the head: its 2^16 masks take a product with the head each, and nothing else.
    model, dropped, samples = without_dropout(tiny_bert()), 0.3, 400
    head_dropout = model.get_base_model().dropout
    features: list[Tensor] = []
    with head_dropout.register_forward_hook(lambda module, inputs, output: features.append(inputs[0])), torch.no_grad():
        for batch in DATA:
            model(**batch)
    head_dropout.p = dropped
    head = model.get_base_model().classifier.modules_to_save["default"]
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    masks = np.array(list(itertools.product([0.0, 1.0], repeat=16)))
    kept = masks.sum(axis=1)
    chance = (1.0 - dropped) ** kept * dropped ** (16 - kept)
    assert chance.sum() == pytest.approx(1.0, abs=1e-12)

    answers = McDropout(samples).fit(subject(model)).answer(DATA)
    one = McDropout(1).fit(subject(model)).answer(DATA).probabilities.values
    for index, feature in enumerate(torch.cat(features).numpy()):
        table = softmax((masks * feature / (1.0 - dropped)) @ weight.T + bias, axis=1)
        mean = chance @ table
        deviation = np.sqrt(chance @ (table - mean) ** 2)
        assert deviation.min() > 0.01
        assert (np.abs(answers.probabilities.values[index] - mean) < 5.0 * deviation / np.sqrt(samples)).all()
        # One pass is one mask, scaled as in training.
        assert np.abs(table - one[index]).max(axis=1).min() < 1e-12


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_model_in_training_mode(name: str) -> None:
    # Dropout of attention weights is no call of a module: attention looks at its own mode.
    model, samples = MODELS[name](), 3
    if name == "llama":
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.2
    other, expected = copy.deepcopy(model).train(), []
    for sample in range(samples):
        rows = []
        for number, batch in enumerate(DATA):
            seed = np.random.SeedSequence((9, sample, number)).generate_state(1, np.uint64)[0]
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(int(seed))
                rows.append(other(**batch).logits.softmax(-1))
        expected.append(torch.cat(rows).numpy())
    members = np.stack(expected)
    found = McDropout(samples).fit(subject(model, seed=9)).answer(DATA)
    np.testing.assert_allclose(found.probabilities.values, members.mean(axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.mutual_information, information(members), rtol=0, atol=1e-12)
    assert np.abs(members - members[0]).max() > 1e-2


def test_masks_differ_by_pass_batch_and_seed_and_not_by_call() -> None:
    model = tiny_bert()
    twice = [DATA[0], DATA[0]]
    members = members_of(model, 3, twice)
    rows = len(DATA[0]["labels"])
    assert np.abs(members[:, :rows] - members[:, rows:]).max(axis=(1, 2)).min() > 1e-3
    assert np.abs(members[0] - members[1]).max() > 1e-3
    np.testing.assert_array_equal(members_of(model, 1, twice), members[:1])
    assert np.abs(members_of(model, 1, twice, seed=1) - members[:1]).max() > 1e-3
    # The same fit answers the same again.
    fitted = McDropout(2).fit(subject(model))
    np.testing.assert_array_equal(fitted.answer(DATA).probabilities.values, fitted.answer(DATA).probabilities.values)


def test_batch_norms_stay_as_in_evaluation() -> None:
    model = without_dropout(tiny_bert())
    pooler = model.get_base_model().bert.pooler
    norm = nn.BatchNorm1d(16).double().eval()
    norm.running_mean.uniform_(-1.0, 1.0)
    pooler.activation = nn.Sequential(nn.Tanh(), norm, nn.Dropout(1e-12))
    plain = np.concatenate([model(**batch).logits.detach().softmax(-1).numpy() for batch in DATA])
    model.train()
    left = Left(model)
    found = McDropout(2).fit(subject(model)).answer(DATA).probabilities.values
    left.check()
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_bit_by_bit(training: bool) -> None:
    model = tiny_bert(dtype=torch.float32).train(training)
    list(model.modules())[7].training = not training
    left = Left(model)
    McDropout(2).fit(subject(model)).answer(DATA)
    left.check()


def test_the_model_is_left_bit_by_bit_after_a_failure() -> None:
    model = tiny_bert()
    left = Left(model)

    def fail(module: nn.Module, inputs: object, outputs: object) -> None:
        assert any(m.training for m in model.modules())
        raise RuntimeError("in the middle")

    fitted = McDropout(2).fit(subject(model))
    with model.register_forward_hook(fail), pytest.raises(RuntimeError, match="in the middle"):
        fitted.answer(DATA)
    left.check()


def test_examples_with_fewer_options() -> None:
    data = option_batches(option_examples((4, 2, 3, 1, 2)), 2, side="right", completion=False)
    found = McDropout(3).fit(Subject(tiny_multiple_choice(), OptionScores(), data)).answer(data)
    present = np.arange(4) < np.array([[4], [2], [3], [1], [2]])
    assert ((found.probabilities.values > 0.0) == present).all()
    np.testing.assert_allclose(found.probabilities.values.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    assert found.mutual_information[3] == 0.0
    assert found.mutual_information[0] > 0.0


def test_refusals() -> None:
    with pytest.raises(LaplaceLoRAError, match=r"mc_dropout needs dropout.*dropout above 0"):
        McDropout().fit(subject(without_dropout(tiny_bert())))
    with pytest.raises(LaplaceLoRAError, match=r"0 passes; give samples of at least 1\.$"):
        McDropout(0).fit(subject(tiny_bert()))
    assert McDropout().settings() == {"samples": 10}
