"""Fine-tuning by settings, held against a plain loop over AdamW written out here."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from laplace_lora.data.collation import collate
from laplace_lora.presets import PRESETS, preset_or_none, training_settings
from laplace_lora.training import TrainingSettings, fine_tune
from tiny_models import random_examples, tiny_llama


def _rows(count: int = 6) -> list[dict[str, Tensor]]:
    return [
        {key: torch.as_tensor(value)[None] for key, value in example.items()}
        for example in random_examples(count, shortest=5, longest=5)
    ]


def _by_hand(model: Any, rows: list[dict[str, Tensor]], settings: TrainingSettings, steps: int) -> dict[str, Tensor]:
    """Every step on all rows: decoupled weight decay, bias-corrected moments, a rate that rises and falls linearly."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    first = {name: torch.zeros_like(value) for name, value in parameters.items()}
    second = {name: torch.zeros_like(value) for name, value in parameters.items()}
    batch = collate(rows, padding=0)
    labels = batch.pop("labels")
    rising = round(settings.warmup * steps) if settings.warmup else 0
    for step in range(steps):
        model.train()
        log_p = torch.log_softmax(model(**batch).logits, dim=-1)
        loss = -log_p[torch.arange(len(labels)), labels].mean()
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        if settings.most_gradient and norm > settings.most_gradient:
            gradients = {name: value * settings.most_gradient / (norm + 1e-6) for name, value in gradients.items()}
        share = step / rising if step < rising else (steps - step) / max(1, steps - rising)
        rate = settings.learning_rate * share
        with torch.no_grad():
            for name, value in parameters.items():
                first[name] = 0.9 * first[name] + 0.1 * gradients[name]
                second[name] = 0.999 * second[name] + 0.001 * gradients[name] ** 2
                mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
                value *= 1 - rate * settings.weight_decay
                value -= rate * mean / (square.sqrt() + settings.epsilon)
    return {name: value.detach().clone() for name, value in parameters.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"warmup": 0.0, "most_gradient": 0.0},
        {"warmup": 0.5, "most_gradient": 0.0, "weight_decay": 0.3, "epsilon": 1e-3},
        {"warmup": 0.0, "most_gradient": 0.01, "epsilon": 1e-6},
    ],
    ids=["paper", "successors", "clipped"],
)
def test_every_step_is_the_plain_one(changes: dict[str, Any]) -> None:
    rows = _rows()
    settings = TrainingSettings(steps=4, learning_rate=1e-2, batch_size=len(rows), **changes)
    model = tiny_llama()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = _by_hand(copy.deepcopy(model), rows, settings, 4)
    start = {name: value.detach().clone() for name, value in model.named_parameters() if name in expected}

    class Tokenizer:
        pad_token_id = 0

    fine_tune(model, Tokenizer(), rows, None, settings, collator=lambda given: collate(given, 0), progress=False)
    for name, value in model.named_parameters():
        if name in expected:
            assert (value - start[name]).abs().max() > 1e-4
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("steps", "every", "expected"), [(5, 2, [2, 4, 5]), (4, None, [3, 4])])
def test_checkpoints(tmp_path: Path, steps: int, every: int | None, expected: list[int]) -> None:
    """An epoch of six rows is three steps; the last step is always kept."""
    settings = TrainingSettings(steps=steps, save_every=every, batch_size=2)

    class Tokenizer:
        pad_token_id = 0

    fine_tune(
        tiny_llama(),
        Tokenizer(),
        _rows(),
        None,
        settings,
        collator=lambda given: collate(given, 0),
        checkpoints=tmp_path / "kept",
        progress=False,
    )
    kept = sorted(int(folder.name.rpartition("-")[2]) for folder in (tmp_path / "kept").iterdir())
    assert kept == expected


def test_padding_on_the_left() -> None:
    rows = [
        {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 1]]), "labels": torch.tensor([1])},
        {"input_ids": torch.tensor([[7]]), "attention_mask": torch.tensor([[1]]), "labels": torch.tensor([0])},
    ]
    batch = collate(rows, padding=9, side="left")
    assert batch["input_ids"].tolist() == [[5, 6], [9, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch["labels"].tolist() == [1, 0]
    # Choices that an example lacks follow those that it has, on either side.
    choices = [
        {"input_ids": torch.tensor([[[5, 6], [4, 3]]]), "option_lengths": torch.tensor([[2, 2]])},
        {"input_ids": torch.tensor([[[7]]]), "option_lengths": torch.tensor([[1]])},
    ]
    batch = collate(choices, padding=9, side="left")
    assert batch["input_ids"].tolist() == [[[5, 6], [4, 3]], [[9, 7], [9, 9]]]
    assert batch["option_lengths"].tolist() == [[2, 2], [1, 0]]


def test_the_papers_settings() -> None:
    """Section 1 of the protocol, figure by figure."""
    paper = PRESETS["paper"]
    training = paper.training
    assert (training.rank, training.alpha, training.dropout) == (8, 16, 0.1)
    assert training.target_modules == ("q_proj", "v_proj", "lm_head")
    assert (training.learning_rate, training.warmup, training.weight_decay) == (5e-5, 0.0, 0.0)
    assert (training.batch_size, training.steps, training.save_every) == (4, 10_000, 1_000)
    assert (paper.max_length, paper.padding_side, paper.seeds) == (300, "left", (21, 42, 87))
    assert paper.quantization == "int8"


def test_the_successors_settings() -> None:
    training = PRESETS["successors"].training
    assert (training.learning_rate, training.steps, training.batch_size) == (1e-4, 5_000, 8)
    assert (training.dropout, training.warmup, training.weight_decay) == (0.0, 0.06, 1e-5)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_begins_with_its_first_seed(preset: Any) -> None:
    assert preset.training.seed == preset.seeds[0]


def test_what_is_said_comes_first() -> None:
    settings = training_settings(preset_or_none("paper"), {"rank": 2, "dropout": 0.0, "steps": None})
    assert (settings.rank, settings.dropout, settings.steps) == (2, 0.0, 10_000)
    # Whoever asks for epochs wants no number of steps.
    assert training_settings(preset_or_none("paper"), {"epochs": 3}).steps is None
    assert training_settings(None, {"epochs": None}) == TrainingSettings()
    assert preset_or_none(None) is None
