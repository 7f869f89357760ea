"""Weight sampling: a plain loop over adapters that PEFT loads, and the model left as it was found."""

import copy
import math

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn

from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from laplace_lora.methods import weight_sampling
from laplace_lora.readouts import OptionScores
from readouts.models import multiple_choice, option_batches, option_examples
from tiny_models import batches, random_examples, tiny_bert, tiny_llama

MODELS = {"bert": tiny_bert, "llama": tiny_llama}
TRAIN, TEST = random_examples(12), random_examples(7, seed=1)


def fitted(model: nn.Module, **settings: object) -> LaplaceLoRA:
    config = LaplaceConfig(progress=False, **settings)  # type: ignore[arg-type]
    return LaplaceLoRA(model, config).fit(batches(TRAIN, 5))


def contents(model: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach().clone() for name, value in tensors.items()}


def flags(model: nn.Module) -> tuple[list[bool], list[bool]]:
    return [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = contents(model)
    return now.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in now.items())


@pytest.mark.parametrize("name", MODELS)
def test_it_is_a_plain_loop(name: str) -> None:
    model = MODELS[name]()
    la = fitted(model)
    found = weight_sampling(la, batches(TEST, 3), 4, seed=5)
    other = copy.deepcopy(model).eval()
    mean = np.zeros((len(TEST), 3))
    for state in la.sample(4, seed=5):
        peft.set_peft_model_state_dict(other, state)
        rows = []
        for batch in batches(TEST, 1):
            with torch.no_grad():
                logits = other(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            rows.append(logits.softmax(dim=-1).numpy())
        mean += np.concatenate(rows) / 4
    assert found.values.dtype == np.float64
    np.testing.assert_allclose(found.values, mean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_left_bit_by_bit(name: str) -> None:
    model = MODELS[name](dtype=torch.float32)
    la = fitted(model)
    model.train()
    model.get_base_model().config.use_cache = False
    before, modes = contents(model), flags(model)
    weight_sampling(la, batches(TEST, 3), 3)
    assert same(model, before)
    assert flags(model) == modes


def test_the_model_is_left_bit_by_bit_after_a_failure() -> None:
    model = tiny_bert()
    la = fitted(model)
    model.train()
    before, modes = contents(model), flags(model)
    seen: list[Tensor] = []

    def fail(module: nn.Module, inputs: object, outputs: object) -> None:
        seen.append(next(p for n, p in model.named_parameters() if "lora_B" in n).detach().clone())
        raise RuntimeError("in the middle")

    with model.register_forward_hook(fail), pytest.raises(RuntimeError, match="in the middle"):
        weight_sampling(la, batches(TEST, 3), 3)
    # The adapter had been moved by then.
    assert not torch.equal(seen[0], next(v for n, v in before.items() if "lora_B" in n))
    assert same(model, before)
    assert flags(model) == modes


def test_it_depends_on_the_seed_and_not_on_the_batches() -> None:
    la = fitted(tiny_bert())
    state = torch.get_rng_state()
    found = weight_sampling(la, iter(batches(TEST, 3)), 3, seed=1).values
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_allclose(weight_sampling(la, batches(TEST, 7), 3, seed=1).values, found, rtol=0, atol=1e-10)
    assert np.abs(weight_sampling(la, batches(TEST, 7), 3, seed=2).values - found).max() > 1e-4


def test_a_posterior_without_width_gives_the_trained_adapter() -> None:
    la = fitted(tiny_bert(), prior_precision=1e16)
    expected = la.predict_dataset(batches(TEST, 3)).map_probabilities.numpy()
    np.testing.assert_allclose(weight_sampling(la, batches(TEST, 3), 3).values, expected, rtol=0, atol=1e-6)


def test_where_the_network_is_linear_both_predictives_agree() -> None:
    # Logits are linear in the weights of the head.
    la = fitted(tiny_bert(), structure="last_layer", prior_precision=0.5)
    exact = la.predict_dataset(batches(TEST, 7)).probabilities.numpy()
    samples = 2000
    found = weight_sampling(la, batches(TEST, 7), samples).values
    # A variable on [0, 1] of mean p has a variance of p (1 - p) at most.
    assert (np.abs(found - exact) <= 5.0 * np.sqrt(exact * (1.0 - exact) / samples)).all()
    assert np.abs(la.predict_dataset(batches(TEST, 7)).map_probabilities.numpy() - exact).max() > 0.02


def test_examples_with_fewer_options() -> None:
    examples = option_examples((4, 2, 3, 1, 2))
    data = option_batches(examples, 2, side="right", completion=False)
    la = LaplaceLoRA(multiple_choice(), LaplaceConfig(progress=False), OptionScores()).fit(data)
    found = weight_sampling(la, data, 3).values
    absent = ~torch.isfinite(la.predict_dataset(data).mean).numpy()
    assert found.shape == (5, 4)
    assert (found[absent] == 0.0).all()
    assert (found[~absent] > 0.0).all()


def test_what_cannot_be_sampled_is_refused() -> None:
    la = fitted(tiny_bert())
    with pytest.raises(LaplaceLoRAError, match=r"no examples.*check the data loader\.$"):
        weight_sampling(la, [], 2)
    with pytest.raises(LaplaceLoRAError, match=r"cannot draw 0 adapters; give n of at least 1\.$"):
        weight_sampling(la, batches(TEST, 3), 0)
    with pytest.raises(LaplaceLoRAError, match="call fit"):
        weight_sampling(LaplaceLoRA(tiny_bert()), batches(TEST, 3), 2)
    targets = [{**batch, "labels": torch.zeros(len(batch["labels"]), 3).double()} for batch in batches(TRAIN, 5)]
    real = LaplaceLoRA(tiny_bert(), LaplaceConfig(likelihood="gaussian", progress=False)).fit(targets)
    with pytest.raises(LaplaceLoRAError, match=r"ClassLogits\(\) reads none; use la\.sample\(n\)"):
        weight_sampling(real, batches(TEST, 3), 2)
    assert math.isclose(weight_sampling(la, batches(TEST, 3), 1).values.sum(), len(TEST))
