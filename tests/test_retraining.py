"""Training again: the same steps as the first training, and a model that is left bit by bit."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from laplace_lora.adapters.weights import adapter_state_dict
from laplace_lora.data.collation import collate
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.readouts import ClassLogits
from laplace_lora.retraining import Retraining
from laplace_lora.training import TrainingSettings, fine_tune
from tiny_models import random_examples, tiny_bert

SETTINGS = TrainingSettings(steps=5, batch_size=3, learning_rate=1e-2, dropout=0.3, seed=4)


class Tokenizer:
    pad_token_id = 0


def batch(rows: Any) -> dict[str, Tensor]:
    return collate(rows, 0)


ROWS = [
    {key: torch.as_tensor(value)[None] for key, value in example.items()} for example in random_examples(7, shortest=4)
]


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in adapter_state_dict(model, "default").items()}


def trained() -> tuple[Any, dict[str, Tensor]]:
    model = tiny_bert()
    start = copied(model)
    fine_tune(model, Tokenizer(), ROWS, None, SETTINGS, collator=batch, progress=False)
    return model, start


def again(model: Any, start: dict[str, Tensor]) -> Retraining:
    return Retraining(model, Tokenizer(), ClassLogits(), ROWS, SETTINGS, start, batch, progress=False)


def test_from_the_start_it_is_the_training_itself() -> None:
    model, start = trained()
    found = again(model, start)(trained=False)
    now = copied(model)
    assert found.keys() == now.keys()
    assert all(torch.equal(found[key], now[key]) for key in now)
    assert any(not torch.equal(now[key], start[key]) for key in now)


def test_another_seed_is_another_adapter() -> None:
    model, start = trained()
    found = again(model, start)(trained=False, seed=5)
    assert any(not torch.equal(value, found[key]) for key, value in copied(model).items())


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_found(training: bool) -> None:
    model, start = trained()
    model.train(training)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    expected = (torch.rand(2), np.random.rand(), random.random())  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    again(model, start)(trained=True, epochs=1, constant_rate=1e-2)
    assert torch.equal(torch.rand(2), expected[0])
    assert (np.random.rand(), random.random()) == expected[1:]  # noqa: NPY002
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert all(module.training is training for module in model.modules())


def test_a_constant_rate_stays_what_it_is() -> None:
    model, start = trained()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    rates: list[float] = []

    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            rates.append(kwargs["lr_scheduler"].get_last_lr()[0])

    more = nn.Parameter(torch.zeros(()))
    again(model, start)(trained=True, epochs=2, constant_rate=0.005, callbacks=[Watch()], parameters=[more])
    assert rates == [0.005] * 6


def test_a_model_on_the_cpu_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU, the Trainer would move it, and the weights that are put back would be other memory."""
    asked = []

    def arguments(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["use_cpu"])
        return TrainingArguments(*args, **kwargs)

    monkeypatch.setattr("laplace_lora.training.TrainingArguments", arguments)
    model, start = trained()
    again(model, start)(trained=False)
    assert asked == [False, True]


def test_a_model_on_another_gpu_is_refused() -> None:
    model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda:1"))]))
    with pytest.raises(LaplaceLoRAError, match="the model is on cuda:1; choose that GPU by CUDA_VISIBLE_DEVICES=1"):
        again(model, {})(trained=False)
