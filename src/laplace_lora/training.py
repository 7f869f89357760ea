"""LoRA fine-tuning by the Hugging Face Trainer, of the likelihood that the posterior will be of."""

import dataclasses
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from laplace_lora.errors import LaplaceLoRAError, MissingExtraError, first_line
from laplace_lora.quiet import quiet_transformers
from laplace_lora.readouts import ClassLogits, Readout, split_labels

TokenRows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Settings of the adapter and of AdamW.

    Attributes:
        rank: LoRA rank r.
        alpha: LoRA scale; the adapter's output is multiplied by alpha / r.
        dropout: Dropout before the adapter, a probability.
        target_modules: Names of the layers to adapt; PEFT's choice for the architecture if None.
        epochs: Passes over the training data, at most; not used where ``steps`` is given.
        steps: Steps of AdamW, at most.
        save_every: Steps from one checkpoint to the next; an epoch if None.
        learning_rate: Peak learning rate; it falls linearly to 0.
        constant_rate: Whether the learning rate stays what it is instead, without warm-up.
        warmup: Share of the steps in which the learning rate rises to its peak.
        head_learning_rate: The same of the classification head, which starts from scratch; as the adapter's if None.
        weight_decay: Of AdamW.
        epsilon: Of AdamW.
        most_gradient: Norm that gradients are clipped to; 0 for no clipping.
        batch_size: Examples per step.
        patience: Checkpoints without a lower validation loss after which training stops.
        stop_after: Share of the steps after which training ends, while the rate falls as if it went on; 1 if None.
        seed: Of the head's and the adapter's start, dropout and the order of examples.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target_modules: tuple[str, ...] | None = None
    epochs: int = 10
    steps: int | None = None
    save_every: int | None = None
    learning_rate: float = 1e-3
    constant_rate: bool = False
    warmup: float = 0.06
    head_learning_rate: float | None = None
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    most_gradient: float = 1.0
    batch_size: int = 16
    patience: int = 2
    stop_after: float | None = None
    seed: int = 0


def require_training() -> None:
    """Refuse to train without the training library.

    Raises:
        MissingExtraError: It is not installed.
    """
    if find_spec("accelerate") is None:
        raise MissingExtraError("training needs accelerate; run: pip install 'laplace-lora[train]'.")


def add_adapter(
    base: nn.Module, settings: TrainingSettings, also: Sequence[str] = (), task_type: str | None = "SEQ_CLS"
) -> peft.PeftModel:
    """Put a fresh LoRA adapter on a model; a sequence classifier's head is trained in full beside it.

    Args:
        base: The base model with its head.
        settings: Rank, scale, dropout and layers.
        also: Names of layers to train in full beside it.
        task_type: PEFT's task type; None for kinds of model that it has none for.

    Returns:
        The model to train.

    Raises:
        LaplaceLoRAError: PEFT does not know which layers to adapt, or none has such a name.
    """
    targets = None if settings.target_modules is None else list(settings.target_modules)
    config = peft.LoraConfig(
        task_type=task_type,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        modules_to_save=list(also) or None,
    )
    try:
        with warnings.catch_warnings():
            # An adapter on tied output embeddings alone is what was asked for, and nothing here merges it.
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
            return peft.get_peft_model(base, config)
    except ValueError as error:
        raise LaplaceLoRAError(
            f"no adapter can be put on {type(base).__name__} ({first_line(error)}); name its layers with "
            "--target-modules."
        ) from error


def fine_tune(
    model: peft.PeftModel,
    tokenizer: Any,
    train: TokenRows,
    validation: TokenRows | None,
    settings: TrainingSettings,
    *,
    readout: Readout | None = None,
    collator: Callable[[Any], dict[str, Tensor]] | None = None,
    checkpoints: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    parameters: Sequence[nn.Parameter] = (),
    progress: bool = True,
    on_cpu: bool = False,
) -> None:
    """Train an adapter by maximum likelihood, in place.

    Args:
        model: From :func:`add_adapter`.
        tokenizer: Pads the rows.
        train: Token ids, attention mask and ``labels`` of every example.
        validation: The same of held-out examples to stop early by: the checkpoint with the least loss on them is
            kept. Without them the last one is.
        settings: Of AdamW.
        readout: What the likelihood is of; :class:`ClassLogits` if not given.
        collator: Makes a batch of rows; pads token ids if not given.
        checkpoints: Folder to keep the adapter of every checkpoint in; none are kept if not given.
        callbacks: Called by the Trainer, after its own.
        parameters: More of them, trained beside the adapter's at the same rate.
        progress: Whether to show a progress bar.
        on_cpu: Whether to leave a GPU alone; the Trainer moves the model onto one that there is otherwise.
    """
    require_training()
    set_seed(settings.seed)
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        keep, every = checkpoints is not None, "epoch" if settings.save_every is None else "steps"
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=settings.epochs,
            max_steps=settings.steps or -1,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            warmup_steps=0 if settings.constant_rate else settings.warmup,
            max_grad_norm=settings.most_gradient,
            lr_scheduler_type="constant" if settings.constant_rate else "linear",
            seed=settings.seed,
            use_cpu=on_cpu,
            save_strategy=every if validation or keep else "no",
            save_steps=settings.save_every or 500,
            eval_steps=settings.save_every,
            save_only_model=True,
            eval_strategy=every if validation else "no",
            load_best_model_at_end=bool(validation),
            metric_for_best_model="eval_loss" if validation else None,
            save_total_limit=None if keep else 1,
            logging_strategy="no",
            report_to=[],
            disable_tqdm=not progress,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        head_rate = settings.learning_rate if settings.head_learning_rate is None else settings.head_learning_rate
        optimizer = torch.optim.AdamW(
            [
                {"params": [*_trained(model, head=False), *parameters], "lr": settings.learning_rate},
                {"params": _trained(model, head=True), "lr": head_rate},
            ],
            weight_decay=settings.weight_decay,
            eps=settings.epsilon,
        )
        trainer = _Trainer(
            model=model,
            optimizers=(optimizer, None),
            args=arguments,
            train_dataset=train,
            eval_dataset=validation,
            callbacks=[*_callbacks(settings, early=bool(validation)), *callbacks],
            data_collator=collator or DataCollatorWithPadding(tokenizer),
        )
        trainer.readout = readout or ClassLogits()
        trainer.train()
        if checkpoints is not None:
            for folder in sorted(Path(scratch).glob("checkpoint-*")):
                shutil.copytree(folder, checkpoints / folder.name)
    model.eval()


def likelihood_loss(readout: Readout, model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return a readout's mean negative log-likelihood of a batch, up to constants.

    Args:
        readout: What the likelihood is of.
        model: The PEFT model.
        inputs: A batch with its labels.

    Returns:
        The loss and the (B, K) outputs.
    """
    batch, given = split_labels(inputs, next(model.parameters()).device)
    rows = readout.rows(batch, given)
    reading = readout.read(model, rows)
    labels = readout.labels(rows, given)
    logits = reading.logits
    if readout.likelihood == "tokens":
        return -reading.outputs.sum() / max(1, reading.targets or 0), logits
    assert labels is not None
    if readout.likelihood == "gaussian":
        return 0.5 * torch.nn.functional.mse_loss(logits[:, 0], labels.to(logits.dtype)), logits
    return torch.nn.functional.cross_entropy(logits, labels), logits


def has_new_head(model: peft.PeftModel) -> bool:
    """Say whether layers are trained in full beside the adapter.

    Args:
        model: From :func:`add_adapter`.

    Returns:
        Whether there are such layers.
    """
    return bool(_trained(model, head=True))


def _trained(model: peft.PeftModel, *, head: bool) -> list[nn.Parameter]:
    """Return the trained parameters of the head, or those of the adapter."""
    named = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return [parameter for name, parameter in named if ("modules_to_save" in name) == head]


def _callbacks(settings: TrainingSettings, *, early: bool) -> list[TrainerCallback]:
    found: list[TrainerCallback] = [EarlyStoppingCallback(settings.patience)] if early else []
    return found if settings.stop_after is None else [*found, _StopAfter(settings.stop_after)]


class _StopAfter(TrainerCallback):
    """Ends a run after a share of its steps."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Stop when it is time.

        Args:
            args: Not used.
            state: Says how far the run is.
            control: What is told to stop.
            **kwargs: Not used.

        Returns:
            The control.
        """
        control.should_training_stop |= state.global_step >= round(self.share * state.max_steps)
        return control


class _Trainer(Trainer):
    """A Trainer of a readout's likelihood, which prints no dictionaries and saves no pickled settings."""

    readout: Readout

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean negative log-likelihood.

        Args:
            model: The PEFT model.
            inputs: A batch with its labels.
            return_outputs: Whether to return the logits too.
            num_items_in_batch: Not used.

        Returns:
            The loss, in nats per example (per token, where the likelihood is that of tokens; for real outputs half the
            squared error), or the pair of it and the outputs.
        """
        loss, logits = likelihood_loss(self.readout, model, inputs)
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Measure held-out data by the loss that is trained.

        Args:
            model: The PEFT model.
            inputs: A batch.
            prediction_loss_only: Not used.
            ignore_keys: Not used.

        Returns:
            The loss, and nothing else.
        """
        with torch.no_grad():
            return likelihood_loss(self.readout, model, inputs)[0].detach(), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Keep logs to itself.

        Args:
            logs: Not shown.
            *args: As the base class.
            **kwargs: As the base class.
        """

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert isinstance(self.model, peft.PeftModel)
        # PEFT would write the frozen output embeddings beside an adapter on them.
        self.model.save_pretrained(str(output_dir or self.args.output_dir), save_embedding_layers=False)
