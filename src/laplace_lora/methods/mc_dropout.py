"""MC dropout (Gal & Ghahramani, "Dropout as a Bayesian approximation", ICML 2016)."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.jacobians import evaluating
from laplace_lora.methods.base import Answers, Fitted, Method, Subject
from laplace_lora.methods.forward import Loader, member_probabilities


class _Dropping(Fitted):
    def __init__(self, subject: Subject, samples: int) -> None:
        super().__init__(subject)
        self.samples = samples

    def answer(self, loader: Loader) -> Answers:
        members = [_masked(self.subject.seed, sample) for sample in range(self.samples)]
        return Answers.of_members(
            member_probabilities(self.subject.model, self.subject.readout, loader, members, dropping)
        )


@dataclasses.dataclass(frozen=True)
class McDropout(Method):
    """The trained adapter with its training's dropout left on; probabilities of several passes are averaged.

    Every example of every pass has masks of its own: they differ from row to row, from batch to batch and from pass to
    pass, and the seed fixes them for the same batches on the same kind of device. The mean over passes is an unbiased
    estimate of the mean over masks; the standard error of a probability is up to 0.5 / sqrt(samples).

    Attributes:
        samples: Forward passes.
    """

    name: ClassVar[str] = "mc_dropout"
    title: ClassVar[str] = "MC dropout"
    samples: int = 10

    def fit(self, subject: Subject) -> Fitted:
        """Look for dropout; no pass is made and nothing has to be kept.

        Args:
            subject: The adapter.

        Returns:
            ``samples`` forward passes per data set.

        Raises:
            LaplaceLoRAError: Nothing in the model is dropped, or ``samples`` is not positive.
        """
        if self.samples < 1:
            raise LaplaceLoRAError(f"mc_dropout cannot average {self.samples} passes; give samples of at least 1.")
        if not dropouts(subject.model):
            raise LaplaceLoRAError(
                "mc_dropout needs dropout, and all of this model's is 0, so that every pass would be the same; train "
                "the adapter with a dropout above 0, such as TrainingSettings(dropout=0.1) or --dropout 0.1."
            )
        return _Dropping(subject, self.samples)


def dropouts(model: nn.Module) -> list[nn.Module]:
    """Find the modules that drop something in training.

    Args:
        model: The model.

    Returns:
        Dropout modules with a probability above 0, and the modules that apply one themselves, by a probability of
        theirs or that of a dropout module of theirs: attention reads it, and its own mode, and calls no module.
    """
    return [
        module
        for module in model.modules()
        if _is_dropout(module)
        or any(_is_dropout(child) for child in module.children())
        or any(isinstance(value, float) and value > 0.0 and "drop" in name for name, value in vars(module).items())
    ]


@contextlib.contextmanager
def dropping(model: nn.Module) -> Iterator[None]:
    """Switch dropout on for a while, and nothing else of training; leave every module in the mode that it was in.

    Args:
        model: The model.

    Yields:
        Nothing. Modules that drop nothing, such as batch norms, are in evaluation mode.
    """
    with evaluating(model):
        chosen = dropouts(model)
        try:
            for module in chosen:
                module.training = True
            yield
        finally:
            for module in chosen:
                module.training = False


def _is_dropout(module: nn.Module) -> bool:
    return isinstance(module, _DropoutNd) and module.p > 0.0


def _masked(seed: int, sample: int) -> Callable[[], AbstractContextManager[None]]:
    """Return what fixes the masks of one pass: entered once per batch, each time with other numbers."""
    batches = itertools.count()

    @contextlib.contextmanager
    def fixed() -> Iterator[None]:
        numbers = np.random.SeedSequence((seed, sample, next(batches))).generate_state(1, np.uint64)
        # All devices are seeded at once, so that all have to be put back.
        with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
            torch.manual_seed(int(numbers[0]))
            yield

    return fixed
