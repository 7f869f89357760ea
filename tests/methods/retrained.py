"""A subject that can be trained again, and what a model is made of, to see that it is left alone."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laplace_lora.adapters.weights import adapter_state_dict
from laplace_lora.data.collation import collate as collate_rows
from laplace_lora.methods.base import State, Subject
from laplace_lora.readouts import ClassLogits
from laplace_lora.retraining import Retraining
from laplace_lora.training import TrainingSettings, fine_tune
from tiny_models import batches, random_examples, tiny_bert


class Tokenizer:
    pad_token_id = 0


def collator(rows: Any) -> dict[str, Tensor]:
    return collate_rows(rows, 0)


def adapter(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in adapter_state_dict(model, "default").items()}


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def subject_of(
    model: Any,
    settings: TrainingSettings,
    examples: int = 7,
    trained: bool = True,
    collate: Callable[[Any], dict[str, Tensor]] = collator,
    **more: Any,
) -> Subject:
    """Train a model, and return it with its training; the start of the training is what the model was."""
    data = random_examples(examples, shortest=4)
    masked = [{**example, "attention_mask": torch.ones_like(example["input_ids"])} for example in data]
    rows = [{key: value[None] for key, value in example.items()} for example in masked]
    start = adapter(model)
    if trained:
        fine_tune(model, Tokenizer(), rows, None, settings, collator=collate, progress=False)
    retrain = Retraining(model, Tokenizer(), ClassLogits(), rows, settings, start, collate, progress=False)
    return Subject(model, ClassLogits(), batches(data, 4), retrain=retrain, **more)


def bert_subject(**more: Any) -> Subject:
    settings = TrainingSettings(steps=4, batch_size=3, learning_rate=1e-2, seed=4)
    return subject_of(without_dropout(tiny_bert()), settings, **more)


def memory() -> Callable[[str, Callable[[], State]], State]:
    """Return a ``Subject.remember`` that does."""
    made: dict[str, State] = {}

    def remember(key: str, make: Callable[[], State]) -> State:
        if key not in made:
            made[key] = make()
        return made[key]

    return remember


def everything(model: nn.Module) -> dict[str, Any]:
    """Return copies of all that a method must leave alone; compare with :func:`unchanged`."""
    plain, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    return {
        "tensors": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "flags": [(p.requires_grad, p.grad is None) for p in model.parameters()],
        "names": [name for name, _ in model.named_parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "python": plain,
        "numpy": (array[0], array[1].tolist(), *array[2:]),
    }


def unchanged(model: nn.Module, before: dict[str, Any]) -> bool:
    now = everything(model)
    tensors, old = now.pop("tensors"), {**before}
    old_tensors, states = old.pop("tensors"), (now.pop("torch"), old.pop("torch"))
    same = tensors.keys() == old_tensors.keys() and all(torch.equal(v, old_tensors[k]) for k, v in tensors.items())
    return same and torch.equal(*states) and now == old
