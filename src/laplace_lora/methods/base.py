"""What every method is: something that is fitted to a trained adapter and its data, or trains its own, and answers.

A method sees one :class:`Subject`: an adapter as its training left it, that training's data, and what else the training
left behind. :meth:`Method.fit` gives a :class:`Fitted`, whose :meth:`~Fitted.answer` can be asked about any data set.
"""

import abc
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import Probabilities
from laplace_lora.evaluation.metrics import entropies
from laplace_lora.evaluation.outputs import FloatArray
from laplace_lora.methods.forward import Loader
from laplace_lora.readouts import Readout

#: An adapter's weights under PEFT's keys, heads that were trained in full included.
State = Mapping[str, Tensor]
#: What time is spent on.
Stage = Literal["train", "fit", "tune"]


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What a method says of N examples.

    Attributes:
        probabilities: Of K classes.
        mutual_information: (N,) nats, the epistemic part of the entropy; None for methods that know of no such thing.
    """

    probabilities: Probabilities
    mutual_information: FloatArray | None = None

    @classmethod
    def of_members(cls, members: FloatArray) -> "Answers":
        """Average the members of an ensemble: probabilities, never logits.

        The mutual information is the entropy of the mean less the mean entropy (Depeweg et al., "Decomposition of
        uncertainty in Bayesian deep learning", ICML 2018), at least 0.

        Args:
            members: (S, N, K) probabilities.

        Returns:
            Their mean; of one member there is no mutual information but 0.
        """
        mean = members.mean(axis=0)
        information = entropies(mean) - np.mean([entropies(member) for member in members], axis=0)
        return cls(Probabilities(mean), np.maximum(information, 0.0))


class Stopwatch:
    """Adds up what a method spends, stage by stage.

    Attributes:
        seconds: By stage.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def watch(self, stage: Stage) -> Iterator[None]:
        """Time what is done meanwhile.

        Args:
            stage: What it is.

        Yields:
            Nothing.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add what was spent elsewhere, such as on an adapter that was trained before.

        Args:
            stage: What it was spent on.
            seconds: How much.
        """
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class Retrain(Protocol):
    """Trains the subject's model by the settings of its own training; the model is left as it was found."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the adapter's own training."""
        ...

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
        """Train.

        Args:
            trained: Whether to go on from the trained adapter; from the start of its training otherwise.
            epochs: Passes over the training data; as many as the adapter's training took if None.
            constant_rate: Learning rate that does not change, without warm-up; the training's own schedule if None.
            callbacks: Called by the Trainer; ``on_train_begin`` and ``on_step_end`` see the model as it is trained.
            parameters: More of them, trained beside the adapter's with the same optimizer and rate.
            seed: Of dropout and the order of examples; the training's own if None.

        Returns:
            The adapter that came out: copies of its weights under PEFT's keys.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """An adapter to be judged, and what its training left behind.

    Attributes:
        model: Holds the adapter; every method leaves it bit by bit as it was found.
        readout: Of classes.
        train: The training data in labelled batches; gives the same batches in the same order every time.
        start: What the adapter was before its training; None where that is not known.
        held_out: Labelled batches that the adapter was not trained on; None where there are none.
        checkpoints: The training's, up to the adapter itself, which is the last; loaded as they are asked for.
        others: Adapters of the same training with other seeds; loaded as they are asked for.
        retrain: Trains anew; None where that is not possible.
        remember: Called with a name and with what makes a state; makes it, or returns what was made under that name
            before. Methods that share a training name it alike.
        seed: Of everything random in a method.
        stopwatch: Takes what is spent.
    """

    model: PeftModel
    readout: Readout
    train: Loader
    start: State | None = None
    held_out: Loader | None = None
    checkpoints: Sequence[State] = ()
    others: Sequence[State] = ()
    retrain: Retrain | None = None
    remember: Callable[[str, Callable[[], State]], State] = lambda name, make: make()
    seed: int = 0
    stopwatch: Stopwatch = dataclasses.field(default_factory=Stopwatch)


class Fitted(abc.ABC):
    """A method that has seen an adapter.

    Attributes:
        subject: The adapter.
        stored_bytes: What has to be kept beside one adapter and its base to answer later.
        found: Numbers that the fit chose, such as a temperature.
    """

    def __init__(self, subject: Subject, stored_bytes: int = 0, found: Mapping[str, Any] | None = None) -> None:
        self.subject = subject
        self.stored_bytes = stored_bytes
        self.found = dict(found or {})

    @abc.abstractmethod
    def answer(self, loader: Loader) -> Answers:
        """Predict a data set.

        Args:
            loader: Batches; labels in them are ignored.

        Returns:
            Probabilities of all examples, in order.
        """


class Method(abc.ABC):
    """One method, with its settings.

    Attributes:
        name: What tables and the command line call it.
        title: What people call it.
        needs_held_out: Whether it wants labelled rows that the adapter was not trained on.
        trains: Whether it trains an adapter of its own.
        uses_adapter: Whether it rests on the trained adapter, whose training then is a part of its cost.
        along_training: Whether it is worth asking at every checkpoint of a training.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs_held_out: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    uses_adapter: ClassVar[bool] = True
    along_training: ClassVar[bool] = False

    @property
    def needs_others(self) -> int:
        """Adapters of other seeds that it wants; by its settings."""
        return 0

    @abc.abstractmethod
    def fit(self, subject: Subject) -> Fitted:
        """Do what has to be done once.

        Args:
            subject: The adapter; left as it was found.

        Returns:
            What answers.
        """

    def settings(self) -> dict[str, Any]:
        """Return the method's settings as JSON values: with the adapter they fix every answer."""
        return dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}


def state_bytes(state: State) -> int:
    """Return how many bytes an adapter's weights take.

    Args:
        state: The weights.

    Returns:
        Their sum.
    """
    return sum(value.numel() * value.element_size() for value in state.values())


def require_held_out(subject: Subject, method: str) -> Loader:
    """Return the rows that the adapter was not trained on.

    Args:
        subject: The adapter.
        method: Who needs them, for the error.

    Returns:
        Labelled batches.

    Raises:
        LaplaceLoRAError: There are none.
    """
    if subject.held_out is None:
        raise LaplaceLoRAError(
            f"{method} is chosen on rows that the adapter was not trained on; give Subject(held_out=...)."
        )
    return subject.held_out


def require_retraining(subject: Subject, method: str) -> Retrain:
    """Return what trains anew.

    Args:
        subject: The adapter.
        method: Who needs it, for the error.

    Returns:
        The training.

    Raises:
        LaplaceLoRAError: There is none.
    """
    if subject.retrain is None:
        raise LaplaceLoRAError(f"{method} trains an adapter of its own; give Subject(retrain=...), as bench does.")
    return subject.retrain
