"""Tune the encoder by LoRA on few labelled sentences, as anybody would, until it fits them all."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from laplace_lora.errors import MissingExtraError

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

    Raises:
        MissingExtraError: The training library is not installed.
    """
    if not _has_accelerate():
        raise MissingExtraError("training needs accelerate; run: pip install 'laplace-lora[train]'.")
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with _quiet():
        encoder = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=classes)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=["query", "value"]
    )
    model = peft.get_peft_model(encoder, config)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=0.0,
            warmup_steps=0.06,
            lr_scheduler_type="linear",
            seed=seed,
            save_strategy="epoch" if validation else "no",
            eval_strategy="epoch" if validation else "no",
            load_best_model_at_end=bool(validation),
            metric_for_best_model="eval_loss" if validation else None,
            save_total_limit=1,
            logging_strategy="no",
            report_to=[],
            disable_tqdm=not progress,
            dataloader_pin_memory=False,
        )
        optimizer = torch.optim.AdamW(
            [
                {"params": _trained(model, head=False), "lr": learning_rate},
                {"params": _trained(model, head=True), "lr": head_learning_rate or learning_rate},
            ],
            weight_decay=0.0,
        )
        trainer = _QuietTrainer(
            model=model,
            optimizers=(optimizer, None),
            args=arguments,
            train_dataset=_tokenized(rows, tokenizer),
            eval_dataset=_tokenized(validation, tokenizer) if validation else None,
            callbacks=[EarlyStoppingCallback(early_stopping_patience=2)] if validation else None,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        with _quiet():
            trainer.train()
    return model.eval(), tokenizer


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


def _trained(model: peft.PeftModel, *, head: bool) -> list[torch.nn.Parameter]:
    """Return the trained parameters of the head, or those of the adapter."""
    named = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return [parameter for name, parameter in named if ("modules_to_save" in name) == head]


def _tokenized(rows: Sequence[Row], tokenizer: Any) -> list[dict[str, Any]]:
    return [{**tokenizer(row["text"]), "labels": row["label"]} for row in rows]


class _QuietTrainer(Trainer):
    """A Trainer that shows progress but prints no dictionaries."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Keep logs to itself.

        Args:
            logs: Not shown.
            *args: As the base class.
            **kwargs: As the base class.
        """


class _quiet:
    """Silence transformers' notes on a freshly made head and on the end of training; put its level back after."""

    def __enter__(self) -> None:
        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()


def _has_accelerate() -> bool:
    from importlib.util import find_spec

    return find_spec("accelerate") is not None
