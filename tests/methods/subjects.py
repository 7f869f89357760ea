"""Subjects for tests of methods, the state that a method has to leave, and a plain loop over members."""

import copy
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import peft
import torch
from torch import Tensor, nn

from laplace_lora.adapters.weights import adapter_state_dict
from laplace_lora.data.collation import collate
from laplace_lora.methods.base import State, Subject
from laplace_lora.readouts import ClassLogits
from laplace_lora.retraining import Retraining
from laplace_lora.training import TrainingSettings
from tiny_models import batches, random_examples

TRAIN, TEST = random_examples(7, shortest=4), random_examples(8, seed=1)
SETTINGS = TrainingSettings(steps=5, batch_size=3, learning_rate=1e-2, seed=4)


class Tokenizer:
    pad_token_id = 0


def batch_of(rows: Any) -> dict[str, Tensor]:
    return collate(rows, 0)


def subject(model: Any, **more: Any) -> Subject:
    return Subject(model, ClassLogits(), batches(TRAIN, 3), **more)


def retraining(model: Any, settings: TrainingSettings = SETTINGS) -> Retraining:
    """Training data of seven rows, 3 steps an epoch, that would start where the adapter is now."""
    rows = [{key: torch.as_tensor(value)[None] for key, value in example.items()} for example in TRAIN]
    return Retraining(
        model, Tokenizer(), ClassLogits(), rows, settings, adapter_of(model), collator=batch_of, progress=False
    )


def adapter_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in adapter_state_dict(model, "default").items()}


def moved(model: nn.Module, seed: int, by: float = 0.2) -> dict[str, Tensor]:
    """Another adapter of the same kind, heads trained in full included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: value + by * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for key, value in adapter_of(model).items()
    }


def plain_loop(model: Any, states: Sequence[State], data: Sequence[dict[str, Tensor]]) -> np.ndarray:
    """(S, N, K) probabilities of adapters that PEFT loads into a copy of the model."""
    other = copy.deepcopy(model).eval()
    found = []
    for state in states:
        peft.set_peft_model_state_dict(other, dict(state))
        with torch.no_grad():
            rows = [other(**{k: v for k, v in batch.items() if k != "labels"}).logits.softmax(-1) for batch in data]
        found.append(torch.cat(rows).numpy())
    return np.stack(found)


def information(members: np.ndarray) -> np.ndarray:
    """(N,) mean divergence of the members from their mean: the mutual information in another form."""
    mean = members.mean(axis=0)
    return (members * np.log(members / mean)).sum(axis=-1).mean(axis=0)


class Left:
    """What a method has to leave: weights, buffers, modes, flags, gradients, the adapter's name, random states."""

    def __init__(self, model: Any) -> None:
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        random.seed(3)
        self.model, self.before = model, self._now(model)

    @staticmethod
    def _now(model: Any) -> dict[str, Any]:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {
            "weights": {name: value.detach().clone() for name, value in tensors.items()},
            "modes": [module.training for module in model.modules()],
            "flags": [(p.requires_grad, p.grad is None) for p in model.parameters()],
            "adapter": list(model.active_adapters),
            "names": [name for name, _ in model.named_parameters()],
            "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
            "torch": torch.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr] # noqa: NPY002
            "python": random.getstate(),
        }

    def check(self) -> None:
        now = self._now(self.model)
        old = dict(self.before)
        weights, before = now.pop("weights"), old.pop("weights")
        assert weights.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in weights.items())
        assert now == old
