"""What a callback needs of the Trainer beyond what its events carry."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from laplace_lora.adapters import active_adapter, adapter_state_dict
from laplace_lora.errors import LaplaceLoRAError


def calling_trainer(callback: TrainerCallback) -> Any | None:
    """Find the Trainer whose event a callback is handling.

    Events carry model and data but no Trainer, and only the Trainer's own list of callbacks reaches the reporters.
    The Trainer is the object up the stack whose handler holds the callback.

    Args:
        callback: The callback, inside one of its events.

    Returns:
        The Trainer, or None where something else calls.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        handler = inspect.getattr_static(owner, "callback_handler", None)
        if isinstance(handler, CallbackHandler) and any(entry is callback for entry in handler.callbacks):
            return owner
        frame = frame.f_back
    return None


def go_first(callback: TrainerCallback, handler: CallbackHandler) -> None:
    """Let a callback handle events before all others: some reporters end their run with the training.

    Args:
        callback: The callback.
        handler: The Trainer's, which holds it.
    """
    # A new list: the old one may be in the middle of being called.
    handler.callbacks = [callback, *(entry for entry in handler.callbacks if entry is not callback)]


def log(trainer: Any | None, args: Any, state: Any, control: Any, metrics: Mapping[str, float]) -> None:
    """Log metrics as ``Trainer.log`` does: into ``state.log_history``, and to every callback.

    Not by calling it: TRL's trainers add their running averages to whatever is logged, and start new ones.

    Args:
        trainer: The Trainer, or None where there is none to tell callbacks.
        args: Its arguments.
        state: Its state.
        control: Its control, which stays as it is.
        metrics: Names to numbers.
    """
    logs = dict(metrics)
    if state.epoch is not None:
        logs["epoch"] = state.epoch
    state.log_history.append({**logs, "step": state.global_step})
    if trainer is not None:
        asked = control.should_log
        trainer.callback_handler.on_log(args, state, control, logs)
        control.should_log = asked


def peft_model(model: Any) -> peft.PeftModel:
    """Take a model out of whatever it was wrapped in for training.

    Args:
        model: As the Trainer's events carry it.

    Returns:
        The PEFT model.

    Raises:
        LaplaceLoRAError: There is none.
    """
    inner = model
    while not isinstance(inner, peft.PeftModel):
        wrapped = [vars(inner).get("_modules", {}).get(name) for name in ("module", "_orig_mod")]
        found = next((module for module in wrapped if module is not None), None)
        if found is None:
            raise LaplaceLoRAError(
                f"LaplaceCallback needs a peft.PeftModel, and the Trainer trains a {type(inner).__name__}; wrap the "
                "model with peft.get_peft_model, or give SFTTrainer or RewardTrainer a peft_config."
            )
        inner = found
    return inner


def adapter_of(model: Any) -> dict[str, Tensor]:
    """Copy the adapter's weights as they are now.

    Args:
        model: As the Trainer's events carry it.

    Returns:
        On the CPU, under PEFT's keys.
    """
    inner = peft_model(model)
    return {key: value.cpu().clone() for key, value in adapter_state_dict(inner, active_adapter(inner)).items()}


@contextlib.contextmanager
def own_precision(model: nn.Module) -> Iterator[None]:
    """Run a model in the precision of its weights, as it will run when it is loaded again.

    Accelerate puts mixed-precision training into the model's ``forward``.

    Args:
        model: The PEFT model.

    Yields:
        Nothing.
    """
    attributes = vars(model)
    if "_original_forward" not in attributes or "forward" not in attributes:
        yield
        return
    mixed = attributes["forward"]
    attributes["forward"] = attributes["_original_forward"]
    try:
        yield
    finally:
        attributes["forward"] = mixed


def checkpoint_folder(args: Any, state: Any) -> Path:
    """Say where the Trainer saves a checkpoint at the current step.

    Args:
        args: The Trainer's arguments.
        state: Its state.

    Returns:
        The folder, which may not exist.
    """
    root = Path(args.output_dir)
    if state.is_hyper_param_search and state.trial_name is not None:
        root /= state.trial_name
    return root / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def final_checkpoint(args: Any, state: Any) -> Path | None:
    """Find the checkpoint that holds the weights which training ended with.

    Args:
        args: The Trainer's arguments.
        state: Its state, at the end.

    Returns:
        The last checkpoint, or the best where that was loaded; None if there is none.
    """
    best = state.best_model_checkpoint if args.load_best_model_at_end else None
    folder = Path(best) if best is not None else checkpoint_folder(args, state)
    return folder if folder.is_dir() else None
