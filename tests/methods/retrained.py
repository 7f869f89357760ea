"""A subject that was trained and can be trained again, and a memory for what methods train."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from laplace_lora.methods.base import State, Subject
from laplace_lora.readouts import ClassLogits
from laplace_lora.retraining import Retraining
from laplace_lora.training import TrainingSettings, fine_tune
from methods.subjects import Tokenizer, adapter_of, batch_of
from tiny_models import batches, random_examples, tiny_bert


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
    collate: Callable[[Any], dict[str, Tensor]] = batch_of,
    **more: Any,
) -> Subject:
    """Train a model, and return it with its training; the start of the training is what the model was."""
    data = random_examples(examples, shortest=4)
    masked = [{**example, "attention_mask": torch.ones_like(example["input_ids"])} for example in data]
    rows = [{key: value[None] for key, value in example.items()} for example in masked]
    start = adapter_of(model)
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
