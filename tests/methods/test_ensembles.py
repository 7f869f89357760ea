"""Ensembles of adapters: a plain loop over copies that PEFT loads, which members they are, and what is left."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from laplace_lora import LaplaceLoRAError
from laplace_lora.methods.base import Method, State, Subject
from laplace_lora.methods.ensembles import CheckpointEnsemble, DeepEnsemble
from laplace_lora.readouts import OptionScores
from methods.subjects import TEST, Left, adapter_of, information, moved, plain_loop, subject
from readouts.models import option_batches, option_examples, tiny_multiple_choice
from tiny_models import batches, tiny_bert, tiny_gpt2, tiny_llama

MODELS = {"bert": tiny_bert, "gpt2": tiny_gpt2, "llama": tiny_llama}
DATA = batches(TEST, 3)


class Lazy(Sequence[State]):
    """States that are made as they are asked for, by index, as those of files are."""

    def __init__(self, makers: Sequence[Callable[[], State]]) -> None:
        self.makers, self.asked = makers, set[int]()

    def __len__(self) -> int:
        return len(self.makers)

    def __getitem__(self, index: Any) -> Any:
        assert 0 <= index < len(self)
        self.asked.add(index)
        return self.makers[index]()


def lazy(states: Sequence[State]) -> Lazy:
    return Lazy([lambda state=state: state for state in states])


def both(model: Any) -> list[tuple[Method, dict[str, Any], list[State], set[int]]]:
    """Either method of three, what it is given, the members that it has, and those that it has to load."""
    states, own = [moved(model, seed) for seed in range(4)], adapter_of(model)
    checkpoints = lazy([*states, own])
    return [
        (CheckpointEnsemble(), {"checkpoints": checkpoints}, [states[2], states[3], own], {2, 3}),
        (DeepEnsemble(), {"others": lazy(states)}, [own, states[0], states[1]], {0, 1}),
    ]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_a_plain_loop(name: str, which: int) -> None:
    model = MODELS[name]()
    method, given, states, loaded = both(model)[which]
    fitted = method.fit(subject(model, **given))
    found = fitted.answer(DATA)
    members = plain_loop(model, states, DATA)
    np.testing.assert_allclose(found.probabilities.values, members.mean(axis=0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.mutual_information, information(members), rtol=0, atol=1e-10)
    assert found.mutual_information.min() > 1e-4
    assert next(iter(given.values())).asked == loaded
    assert fitted.stored_bytes == 2 * sum(8 * value.numel() for value in adapter_of(model).values())


@pytest.mark.parametrize("which", [0, 1])
def test_heads_that_were_trained_in_full_are_members_own(which: int) -> None:
    model = tiny_bert()
    own = adapter_of(model)
    other = {key: value + 1.0 if key.endswith("classifier.bias") else value for key, value in own.items()}
    other = {key: 2.0 * value if key.endswith("classifier.weight") else value for key, value in other.items()}
    assert any(not torch.equal(other[key], own[key]) for key in own)
    more = {"checkpoints": [other, own]} if which == 0 else {"others": [other]}
    method = CheckpointEnsemble(2) if which == 0 else DeepEnsemble(2)
    found = method.fit(subject(model, **more)).answer(DATA)
    # By hand: the head is the last layer.
    logits = np.concatenate([model(**batch).logits.detach().numpy() for batch in DATA])
    bias = own[next(key for key in own if key.endswith("classifier.bias"))].numpy()
    both_logits = torch.from_numpy(np.stack([logits, 2.0 * (logits - bias) + bias + 1.0]))
    np.testing.assert_allclose(found.probabilities.values, both_logits.softmax(-1).mean(0).numpy(), rtol=0, atol=1e-12)


def test_members_that_are_the_same_know_no_more_than_one() -> None:
    model = tiny_bert()
    found = DeepEnsemble().fit(subject(model, others=[adapter_of(model)] * 2)).answer(DATA)
    np.testing.assert_allclose(
        found.probabilities.values, plain_loop(model, [adapter_of(model)], DATA)[0], rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(found.mutual_information, 0.0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("which", [0, 1])
def test_the_model_is_left_bit_by_bit(which: int, training: bool) -> None:
    model = tiny_bert(dtype=torch.float32).train(training)
    method, given, _, _ = both(model)[which]
    left = Left(model)
    method.fit(subject(model, **given)).answer(DATA)
    left.check()


@pytest.mark.parametrize("which", [0, 1])
def test_the_model_is_left_bit_by_bit_after_a_failure(which: int) -> None:
    model = tiny_bert()
    method, given, _, _ = both(model)[which]
    fitted = method.fit(subject(model, **given))
    left = Left(model)
    own, seen = adapter_of(model), [0]

    def fail(module: nn.Module, inputs: object, outputs: object) -> None:
        now: dict[str, Tensor] = adapter_of(model)
        if any(not torch.equal(now[key], own[key]) for key in own):
            seen[0] += 1
            raise RuntimeError("another member")

    with model.register_forward_hook(fail), pytest.raises(RuntimeError, match="another member"):
        fitted.answer(DATA)
    assert seen == [1]
    left.check()


def test_examples_with_fewer_options() -> None:
    data = option_batches(option_examples((4, 2, 3, 1, 2)), 2, side="right", completion=False)
    model = tiny_multiple_choice()
    others = [moved(model, seed) for seed in range(2)]
    found = DeepEnsemble().fit(Subject(model, OptionScores(), data, others=others)).answer(data)
    present = np.arange(4) < np.array([[4], [2], [3], [1], [2]])
    assert ((found.probabilities.values > 0.0) == present).all()
    np.testing.assert_allclose(found.probabilities.values.sum(axis=1), 1.0, rtol=0, atol=1e-12)
    assert found.mutual_information[3] == 0.0
    assert found.mutual_information[0] > 0.0


def test_what_they_need_follows_from_their_settings() -> None:
    assert (DeepEnsemble().needs_others, DeepEnsemble(5).needs_others, CheckpointEnsemble().needs_others) == (2, 4, 0)
    assert (DeepEnsemble(5).settings(), CheckpointEnsemble().settings()) == ({"members": 5}, {"last": 3})


def test_refusals() -> None:
    model = tiny_bert()
    own = adapter_of(model)
    with pytest.raises(LaplaceLoRAError, match=r"last 3 checkpoints, and the training left 2; train with more"):
        CheckpointEnsemble().fit(subject(model, checkpoints=[own, own]))
    with pytest.raises(LaplaceLoRAError, match=r"deep_ensemble of 4 needs 3 adapters .* there are 2; train more"):
        DeepEnsemble(4).fit(subject(model, others=[own, own]))
    with pytest.raises(LaplaceLoRAError, match=r"checkpoint_ensemble .* last is 1; give at least 2\.$"):
        CheckpointEnsemble(1).fit(subject(model, checkpoints=[own]))
    with pytest.raises(LaplaceLoRAError, match=r"deep_ensemble .* members is 0; give at least 2\.$"):
        DeepEnsemble(0).fit(subject(model))
    first = min(own)
    for wrong in ({k: v for k, v in own.items() if k != first}, {**own, first: own[first][:1]}):
        with pytest.raises(LaplaceLoRAError, match=r"does not fit the adapter at .*; give adapters of one"):
            DeepEnsemble(2).fit(subject(model, others=[wrong]))
