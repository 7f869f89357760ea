"""Training an adapter again, for methods that train one of their own; the model is left as it was found."""

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback

from laplace_lora.adapters import moved_to
from laplace_lora.adapters.active import active_adapter
from laplace_lora.adapters.weights import adapter_state_dict, keys_by_parameter
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.readouts import Readout
from laplace_lora.training import TokenRows, TrainingSettings, fine_tune


@dataclasses.dataclass(frozen=True, eq=False)
class Retraining:
    """Trains as ``train`` did; a :class:`~laplace_lora.methods.base.Retrain`.

    Attributes:
        model: Holds the trained adapter.
        tokenizer: Its tokenizer.
        readout: What the likelihood is of.
        rows: Token ids, attention mask and ``labels`` of every training example.
        settings: Of the training.
        start: What the adapter was before its training.
        collator: Makes batches of rows.
        progress: Whether to show a progress bar.
    """

    model: PeftModel
    tokenizer: Any
    readout: Readout
    rows: TokenRows
    settings: TrainingSettings
    start: Mapping[str, Tensor]
    collator: Callable[[Any], dict[str, Tensor]] | None = None
    progress: bool = True

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the training that is done again."""
        return self.settings.learning_rate

    def __call__(
        self,
        *,
        trained: bool,
        epochs: int | None = None,
        constant_rate: float | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        parameters: Sequence[nn.Parameter] = (),
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Train; see :class:`~laplace_lora.methods.base.Retrain`.

        Args:
            trained: Whether to go on from the trained adapter.
            epochs: Passes over the data, in place of the training's own duration.
            constant_rate: Learning rate that does not change.
            callbacks: Called by the Trainer.
            parameters: More of them to train.
            seed: In place of the training's own.

        Returns:
            The adapter that came out.

        Raises:
            LaplaceLoRAError: The model is on another GPU than the first, from which the Trainer would move it.
        """
        device = next(self.model.parameters()).device
        if device.type == "cuda" and device.index:
            raise LaplaceLoRAError(
                f"training goes on on the first GPU, and the model is on {device}; choose that GPU by "
                f"CUDA_VISIBLE_DEVICES={device.index}, and give --device cuda."
            )
        more: dict[str, Any] = {} if seed is None else {"seed": seed}
        if epochs is not None:
            more |= {"epochs": epochs, "steps": None, "stop_after": None}
        if constant_rate is not None:
            more |= {"learning_rate": constant_rate, "head_learning_rate": None, "constant_rate": True}
        settings = dataclasses.replace(self.settings, **more)
        adapter = active_adapter(self.model)
        now = adapter_state_dict(self.model, adapter)
        begin = {key: value.clone() for key, value in (now if trained else self.start).items()}
        with random_numbers_kept(), moved_to(self.model, begin), _trainable(self.model, adapter):
            fine_tune(
                self.model,
                self.tokenizer,
                self.rows,
                None,
                settings,
                readout=self.readout,
                collator=self.collator,
                callbacks=callbacks,
                parameters=parameters,
                progress=self.progress,
                # Moved to a GPU, the model's weights would be other memory than those that are put back.
                on_cpu=device.type == "cpu",
            )
            return {key: value.clone() for key, value in adapter_state_dict(self.model, adapter).items()}


@contextlib.contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Put the random generators of Python, NumPy and torch back afterwards.

    Yields:
        Nothing.
    """
    plain, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(array)  # noqa: NPY002


@contextlib.contextmanager
def _trainable(model: PeftModel, adapter: str) -> Iterator[None]:
    """Let all of the adapter be trained, and nothing else; put flags, modes and gradients back afterwards."""
    state = keys_by_parameter(model, adapter_state_dict(model, adapter))
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for parameter, _, _ in flags:
            parameter.requires_grad_(id(parameter) in state)
        yield
    finally:
        for parameter, flag, gradient in flags:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
