"""SWAG: a Gaussian fitted to the weights that a training at a constant rate passes through.

Maddox et al., "A simple baseline for Bayesian uncertainty in deep learning" (NeurIPS 2019); over LoRA weights Onal et
al., "Gaussian stochastic weight averaging for Bayesian low-rank adaptation of large language models" (2024).
"""

import collections
import dataclasses
import math
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor
from transformers import TrainerCallback

from laplace_lora.adapters import active_adapter, adapter_state_dict
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.methods.base import Answers, Fitted, Method, State, Subject, require_retraining, state_bytes
from laplace_lora.methods.forward import Loader, adapters, member_probabilities

#: Least variance of a weight, against rounding below 0; that of both papers' code.
LEAST_VARIANCE = 1e-30


class _Gaussian(Fitted):
    def __init__(self, subject: Subject, moments: State, method: "Swag", found: dict[str, Any]) -> None:
        super().__init__(subject, state_bytes(moments), found)
        self.moments, self.method = moments, method

    def answer(self, loader: Loader) -> Answers:
        model = self.subject.model
        states = draw(self.moments, self.method.samples, self.subject.seed, self.method.scale)
        return Answers.of_members(member_probabilities(model, self.subject.readout, loader, adapters(model, states)))


@dataclasses.dataclass(frozen=True)
class Swag(Method):
    """Training goes on from the adapter at a constant rate; its iterates' moments are a Gaussian to draw adapters from.

    All trained weights have a part in it: both LoRA matrices, and heads trained in full. ``rank`` and ``scale`` are
    those of Maddox et al. The code of Onal et al. trains on for 5 epochs, collects once in each, keeps 5 deviations and
    draws at a scale of 1; its rate moves over 5 epochs to a share of the peak, which is a tenth in its script for
    training, a sixth in its example and a half in the run that its script for evaluation names. Here the epochs are 5
    and the rate is a half, from the first step of a new AdamW, since training goes on from an adapter that is done.

    Attributes:
        rate: The constant learning rate, as a share of the peak rate of the adapter's own training.
        epochs: Passes over the training data.
        iterates: How many weights are collected, evenly spread over the steps; the last step's are among them.
        rank: Deviations that are kept, those of the last iterates: K.
        scale: What the sum of both parts of the covariance is multiplied by; at 1/2, as in the paper, it is their mean.
        samples: Adapters to draw.
    """

    name: ClassVar[str] = "swag"
    title: ClassVar[str] = "SWAG"
    trains: ClassVar[bool] = True
    rate: float = 0.5
    epochs: int = 5
    iterates: int = 40
    rank: int = 20
    scale: float = 0.5
    samples: int = 10

    def fit(self, subject: Subject) -> Fitted:
        """Train for ``epochs`` and collect moments.

        Memory for rank + 2 times the adapter, in main memory: mean and variance in float64, deviations in the weights'
        dtype but never below float32.

        Args:
            subject: The adapter.

        Returns:
            ``samples`` forward passes per data set; meanwhile as many adapters are held in main memory.

        Raises:
            LaplaceLoRAError: Training is not possible, has too few steps or diverges, or a setting makes no sense.
        """
        if min(self.rank, self.iterates) < 2 or min(self.epochs, self.samples) < 1 or min(self.rate, self.scale) <= 0.0:
            raise LaplaceLoRAError(
                f"{self} cannot be fitted; give rank and iterates of at least 2, at least 1 of epochs and samples, and "
                "a rate and a scale above 0."
            )
        retrain = require_retraining(subject, self.name)
        constant = self.rate * retrain.learning_rate

        def make() -> State:
            collector = _Collector(subject.model, self.iterates, self.rank)
            with subject.stopwatch.watch("train"):
                retrain(
                    trained=True,
                    epochs=self.epochs,
                    constant_rate=constant,
                    callbacks=[collector],
                    seed=subject.seed,
                )
            return collector.moments()

        # Scale and samples come after the training, so that they share it.
        name = f"swag rate={self.rate} epochs={self.epochs} iterates={self.iterates} rank={self.rank}"
        moments = subject.remember(f"{name} seed={subject.seed}", make)
        return _Gaussian(subject, moments, self, {"learning_rate": constant})


def draw(moments: State, samples: int, seed: int, scale: float) -> list[dict[str, Tensor]]:
    """Draw adapters from the Gaussian (Maddox et al., equation 1).

    theta = mean + sqrt(scale) (variance^(1/2) z1 + D z2 / sqrt(K - 1)) with z1, z2 of independent standard normals, so
    that the covariance is scale (diag(variance) + D D' / (K - 1)), exactly; z2 is one for all weights of a draw. In
    the paper scale is 1/2: both parts estimate the variance of every weight.

    Args:
        moments: From :meth:`Swag.fit`: ``mean.``, ``variance.`` and ``deviations.`` before PEFT's keys.
        samples: How many.
        seed: Fixes the draws, on whatever device the model is.
        scale: What the covariance is multiplied by.

    Returns:
        Weights under PEFT's keys, in the deviations' dtype. Where fewer than ``rank`` iterates were collected, K is
        their number.
    """
    generator = torch.Generator().manual_seed(seed)
    # A file need not keep the order.
    keys = sorted(key.removeprefix("mean.") for key in moments if key.startswith("mean."))
    columns = len(moments[f"deviations.{keys[0]}"])
    states = []
    for _ in range(samples):
        shared = torch.randn(columns, generator=generator, dtype=torch.float64) / math.sqrt(columns - 1)
        state = {}
        for key in keys:
            mean, deviations = moments[f"mean.{key}"], moments[f"deviations.{key}"]
            own = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
            moved = moments[f"variance.{key}"].sqrt() * own + torch.tensordot(shared, deviations.double(), dims=1)
            state[key] = (mean + math.sqrt(scale) * moved).to(deviations.dtype)
        states.append(state)
    return states


class _Collector(TrainerCallback):
    """Keeps running moments of an adapter's weights, as both papers' code does: of the iterates, without the start.

    The deviation of an iterate is from the mean of all until then, itself included; that of the first is 0.
    """

    def __init__(self, model: PeftModel, iterates: int, rank: int) -> None:
        self.model, self.adapter, self.iterates = model, active_adapter(model), iterates
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}
        self.deviations: collections.deque[dict[str, Tensor]] = collections.deque(maxlen=rank)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a training that is too short, before its first step.

        Args:
            args: Not used.
            state: Says how many steps there will be.
            control: Not used.
            **kwargs: Not used.

        Raises:
            LaplaceLoRAError: There are fewer steps than iterates.
        """
        if state.max_steps < self.iterates:
            raise LaplaceLoRAError(
                f"swag collects {self.iterates} iterates, and its training has {state.max_steps} steps; give more "
                "epochs or fewer iterates."
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Collect the weights at every (steps / iterates)-th step, rounded up.

        Args:
            args: Not used.
            state: Says how far the training is.
            control: Not used.
            **kwargs: Not used.
        """
        step, steps = state.global_step, state.max_steps
        if step * self.iterates // steps > (step - 1) * self.iterates // steps:
            self._collect()

    def _collect(self) -> None:
        self.count += 1
        deviations = {}
        for key, value in adapter_state_dict(self.model, self.adapter).items():
            now = value.to("cpu", torch.float64)
            mean = self.mean.setdefault(key, torch.zeros(now.shape, dtype=torch.float64))
            square = self.square.setdefault(key, torch.zeros(now.shape, dtype=torch.float64))
            mean += (now - mean) / self.count
            square += (now.square() - square) / self.count
            deviations[key] = (now - mean).to(torch.promote_types(value.dtype, torch.float32))
        self.deviations.append(deviations)

    def moments(self) -> dict[str, Tensor]:
        """Return the mean, the variance around it and the deviations of the last iterates.

        Returns:
            ``mean.``, ``variance.`` and ``deviations.`` before PEFT's keys; deviations with one more dimension, first.

        Raises:
            LaplaceLoRAError: Weights became infinite or none.
        """
        found: dict[str, Tensor] = {}
        for key, mean in self.mean.items():
            if not self.square[key].isfinite().all():
                raise LaplaceLoRAError(f"swag's training diverged: {key} is not finite; give a lower rate.")
            found[f"mean.{key}"] = mean
            found[f"variance.{key}"] = (self.square[key] - mean.square()).clamp(min=LEAST_VARIANCE)
            found[f"deviations.{key}"] = torch.stack([kept[key] for kept in self.deviations])
        return found
