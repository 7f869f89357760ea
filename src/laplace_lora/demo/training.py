"""Tune the encoder by LoRA on few labelled sentences, as anybody would, until it fits them all."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from laplace_lora.quiet import quiet_transformers
from laplace_lora.training import TrainingSettings, add_adapter, fine_tune, require_training

Row = Mapping[str, Any]


def train_adapter(
    folder: Path,
    rows: Sequence[Row],
    *,
    classes: int,
    rank: int,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    head_learning_rate: float | None = None,
    validation: Sequence[Row] | None = None,
    progress: bool = True,
) -> tuple[peft.PeftModel, Any]:
    """Train a LoRA adapter (query and value) and a classification head by cross-entropy.

    Args:
        folder: Of the encoder.
        rows: ``text`` and ``label`` each.
        classes: Number of labels.
        rank: LoRA rank; alpha is twice that, dropout 0.
        epochs: Passes over the rows.
        learning_rate: Of AdamW without weight decay, 6 % warm-up and linear decay.
        batch_size: Rows per step.
        head_learning_rate: Of the head, which starts from scratch; as the adapter's if not given.
        seed: Of the head's and the adapter's start and of the order of rows.
        validation: Rows to stop early by: the epoch with the least loss on them is kept, and training ends
            two epochs after it. Without them the last epoch is.
        progress: Whether to show a progress bar.

    Returns:
        The trained model, in eval mode, and its tokenizer.
    """
    require_training()
    settings = TrainingSettings(
        rank=rank,
        alpha=2 * rank,
        target_modules=("query", "value"),
        epochs=epochs,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        batch_size=batch_size,
        seed=seed,
    )
    set_seed(seed)  # the head's start, made before the adapter's
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with quiet_transformers():
        encoder = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=classes)
    model = add_adapter(encoder, settings)
    held_out = _tokenized(validation, tokenizer) if validation else None
    fine_tune(model, tokenizer, _tokenized(rows, tokenizer), held_out, settings, progress=progress)
    return model, tokenizer


def batches(rows: Sequence[Row], tokenizer: Any, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Collate rows in order, each batch padded to its longest.

    Args:
        rows: ``text`` and ``label`` each.
        tokenizer: Of the encoder.
        batch_size: Rows per batch.

    Yields:
        Model inputs with labels.
    """
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        encoded = tokenizer([row["text"] for row in part], padding=True, return_tensors="pt")
        yield {**encoded, "labels": torch.tensor([row["label"] for row in part])}


def _tokenized(rows: Sequence[Row], tokenizer: Any) -> list[dict[str, Any]]:
    return [{**tokenizer(row["text"]), "labels": row["label"]} for row in rows]
