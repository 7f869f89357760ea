"""Tiny models, data and real Trainers for the callback's tests; nothing is downloaded."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.adapters import adapter_state_dict
from laplace_lora.persistence.files import CONFIG_NAME, TENSORS_NAME
from tiny_models import collate, random_examples, tiny_bert

QUIET = LaplaceConfig(progress=False)
FILES = (CONFIG_NAME, TENSORS_NAME)
TRAIN, EVALUATION = random_examples(11, seed=1), random_examples(7, seed=2)
VOCABULARY = 40


class Examples(Dataset):
    """A data set with a length."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@dataclasses.dataclass
class Recorder(TrainerCallback):
    """What a reporter sees that ends its run with the training."""

    logs: list[dict[str, float]] = dataclasses.field(default_factory=list)
    ended: bool = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not self.ended:
            self.logs.append(dict(logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = True


def arguments(folder: Path, kind: Any = TrainingArguments, **options: Any) -> Any:
    """Arguments of five steps on the CPU, saved nowhere unless asked."""
    settings = {
        "output_dir": str(folder),
        "max_steps": 5,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "learning_rate": 2e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_drop_last": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return kind(**(settings | options))


def classifier(**options: Any) -> nn.Module:
    """A BERT with LoRA dropout, in single precision."""
    return tiny_bert(dtype=torch.float32, **options)


def trainer(folder: Path, callbacks: list[Any] | None = None, model: Any = None, **options: Any) -> Trainer:
    """A Trainer of a classifier, with an evaluation set."""
    torch.manual_seed(7)
    model = model if model is not None else classifier()
    return Trainer(
        model=model,
        args=arguments(folder, **options),
        train_dataset=Examples(TRAIN),
        eval_dataset=Examples(EVALUATION),
        data_collator=collate,
        callbacks=callbacks,
    )


def by_hand(
    model: nn.Module, train: Any, start: dict[str, Tensor] | None, readout: Any = None, config: LaplaceConfig = QUIET
) -> LaplaceLoRA:
    """What a user would do after the training who has kept the adapter's start."""
    return LaplaceLoRA(model, config, readout).fit(train).tune_prior(starting_point=start)


def loader(items: Any, collator: Callable[[Any], Any] = collate, size: int = 4) -> DataLoader:
    """Items in order."""
    return DataLoader(items, batch_size=size, collate_fn=collator)


def same_posterior(first: LaplaceLoRA, second: LaplaceLoRA) -> None:
    """Check that two posteriors agree to the last bit."""
    one, two = first.posterior.tensors(), second.posterior.tensors()
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    assert first.prior_precision == second.prior_precision
    assert first.noise_variance == second.noise_variance
    assert torch.equal(first.training.inputs, second.training.inputs)


def loss_of_all(run: Trainer) -> float:
    """The Trainer's own loss on its whole evaluation set; it drops the last batch there too, if told to."""
    run.args.dataloader_drop_last = False
    return run.evaluate()["eval_loss"]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the adapter."""
    return {name: tensor.clone() for name, tensor in adapter_state_dict(model, "default").items()}


def same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two adapters are equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The entries that the callback made, under short names."""
    entries = [entry for entry in history if any(name.startswith("laplace/") for name in entry)]
    return [{name.removeprefix("laplace/"): value for name, value in entry.items()} for entry in entries]


def language_model() -> LlamaForCausalLM:
    """A Llama without an adapter."""
    torch.manual_seed(0)
    return LlamaForCausalLM(_llama())


def reward_model() -> LlamaForSequenceClassification:
    """A Llama with one output, without an adapter."""
    torch.manual_seed(0)
    return LlamaForSequenceClassification(_llama(num_labels=1))


def lora(task: str) -> peft.LoraConfig:
    """LoRA with dropout on the attention."""
    return peft.LoraConfig(task_type=task, r=3, lora_alpha=5, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])


def _llama(**options: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
        initializer_range=0.25,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
        **options,
    )
