"""Ensembles of trained adapters on one base: of one training's checkpoints, or of several trainings."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from laplace_lora.adapters import active_adapter, adapter_state_dict
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.methods.base import Answers, Fitted, Method, State, Subject, state_bytes
from laplace_lora.methods.forward import Loader, adapters, member_probabilities


class _Ensemble(Fitted):
    """The subject's own adapter, and others that are moved into the same model one after the other.

    Holds the others' weights, and while one of them is in the model a copy of the subject's own; one base.
    """

    def __init__(self, subject: Subject, others: Sequence[State]) -> None:
        for state in others:
            _check(subject.model, state)
        super().__init__(subject, sum(state_bytes(state) for state in others))
        self.others = others

    def answer(self, loader: Loader) -> Answers:
        model = self.subject.model
        members = [contextlib.nullcontext, *adapters(model, self.others)]
        return Answers.of_members(member_probabilities(model, self.subject.readout, loader, members))


@dataclasses.dataclass(frozen=True)
class CheckpointEnsemble(Method):
    """The last checkpoints of one training, the adapter itself among them; probabilities are averaged.

    Chen, Lundberg & Lee, "Checkpoint ensembles" (2017) average a single training's checkpoints; theirs are the best
    ones by validation loss, these are the last. Heads trained in full are part of every member. Holds the weights of
    ``last`` adapters beside one base.

    Attributes:
        last: How many checkpoints.
    """

    name: ClassVar[str] = "checkpoint_ensemble"
    title: ClassVar[str] = "Checkpoint ensemble"
    last: int = 3

    def fit(self, subject: Subject) -> Fitted:
        """Load the checkpoints before the adapter.

        Args:
            subject: The adapter.

        Returns:
            ``last`` forward passes per data set.

        Raises:
            LaplaceLoRAError: The training left fewer checkpoints, they are of another adapter, or ``last`` is below 2.
        """
        _at_least_two(self.name, "last", self.last)
        there = len(subject.checkpoints)
        if there < self.last:
            raise LaplaceLoRAError(
                f"checkpoint_ensemble averages the last {self.last} checkpoints, and the training left {there}; "
                "train with more of them, by TrainingSettings(save_every=...) or --save-every, or give a smaller last."
            )
        return _Ensemble(subject, [subject.checkpoints[there - back] for back in range(self.last, 1, -1)])


@dataclasses.dataclass(frozen=True)
class DeepEnsemble(Method):
    """Adapters of trainings with several seeds (Lakshminarayanan et al., NeurIPS 2017); probabilities are averaged.

    The subject's own adapter is the first member. Heads trained in full are part of every member, so that each has
    its own. Holds the weights of ``members`` adapters beside one base.

    Attributes:
        members: How many adapters.
    """

    name: ClassVar[str] = "deep_ensemble"
    title: ClassVar[str] = "Deep ensemble"
    members: int = 3

    @property
    def needs_others(self) -> int:
        """All members but the subject's own adapter."""
        return self.members - 1

    def fit(self, subject: Subject) -> Fitted:
        """Load the other adapters.

        Args:
            subject: The adapter.

        Returns:
            ``members`` forward passes per data set.

        Raises:
            LaplaceLoRAError: There are fewer adapters, they do not fit the model, or ``members`` is below 2.
        """
        _at_least_two(self.name, "members", self.members)
        if len(subject.others) < self.needs_others:
            raise LaplaceLoRAError(
                f"deep_ensemble of {self.members} needs {self.needs_others} adapters of other seeds beside the one it "
                f"is given, and there are {len(subject.others)}; train more of them or give fewer members."
            )
        return _Ensemble(subject, [subject.others[index] for index in range(self.needs_others)])


def _at_least_two(method: str, setting: str, value: int) -> None:
    if value < 2:
        raise LaplaceLoRAError(f"{method} averages adapters, and {setting} is {value}; give at least 2.")


def _check(model: nn.Module, state: State) -> None:
    """Refuse weights that are not all of the model's adapter, before any of them is moved."""
    own = {key: value.shape for key, value in adapter_state_dict(model, active_adapter(model)).items()}
    given = {key: value.shape for key, value in state.items()}
    wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if wrong:
        raise LaplaceLoRAError(
            f"a member of the ensemble does not fit the adapter at {wrong[0]}; give adapters of one configuration."
        )
