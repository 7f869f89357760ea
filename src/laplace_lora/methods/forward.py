"""Forward passes over a data set: the trained adapter's logits, and the probabilities of other adapters."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from laplace_lora.adapters import moved_to
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import Logits
from laplace_lora.evaluation.metrics import IntArray
from laplace_lora.evaluation.outputs import FloatArray
from laplace_lora.jacobians import evaluating
from laplace_lora.readouts import Readout, split_labels

#: Batches as for ``la.fit`` and ``la.predict``.
Loader = Iterable[Mapping[str, Any]]


@torch.no_grad()
def class_logits(model: nn.Module, readout: Readout, loader: Loader) -> tuple[Logits, IntArray | None]:
    """Read the logits of all examples: one forward pass.

    Args:
        model: The PEFT model; left as it was found.
        readout: Of classes.
        loader: Batches; read once.

    Returns:
        (N, K) logits in order, -inf for options that an example lacks; and (N,) labels, None where no batch has any.

    Raises:
        LaplaceLoRAError: There was no batch, or some batches have labels and others none.
    """
    device = next(model.parameters()).device
    logits, labels = [], []
    with evaluating(model):
        for batch in loader:
            inputs, given = split_labels(batch, device)
            rows = readout.rows(inputs, given)
            logits.append(readout.read(model, rows).logits.double().cpu().numpy())
            label = readout.labels(rows, given)
            if label is not None:
                labels.append(label.cpu().numpy())
    if labels and len(labels) != len(logits):
        raise LaplaceLoRAError("some batches have labels and others have none; give all or none.")
    return Logits(joined(logits, -np.inf)), np.concatenate(labels) if labels else None


@torch.no_grad()
def member_probabilities(
    model: nn.Module,
    readout: Readout,
    loader: Loader,
    members: Sequence[Callable[[], AbstractContextManager[Any]]],
    mode: Callable[[nn.Module], AbstractContextManager[Any]] = evaluating,
) -> FloatArray:
    """Run every batch through every member of an ensemble: as many forward passes as there are members.

    Args:
        model: The PEFT model; left as it was found.
        readout: Of classes.
        loader: Batches; labels in them are ignored. Read once, so that all members see the same.
        members: Each gives a context in which the model is that member; entered once per batch.
        mode: What the model is in meanwhile: ``evaluating``, where members do not differ by dropout.

    Returns:
        (S, N, K) float64 probabilities; 0 for options that an example lacks.

    Raises:
        LaplaceLoRAError: There was no batch, or no member.
    """
    if not members:
        raise LaplaceLoRAError("an ensemble has no members; give at least one.")
    device = next(model.parameters()).device
    parts: list[list[FloatArray]] = [[] for _ in members]
    with mode(model):
        for batch in loader:
            rows = readout.rows(*split_labels(batch, device))
            for part, member in zip(parts, members, strict=True):
                with member():
                    part.append(torch.softmax(readout.read(model, rows).logits.double(), dim=-1).cpu().numpy())
    return np.stack([joined(part, 0.0) for part in parts])


def adapters(
    model: nn.Module, states: Iterable[Mapping[str, Tensor]]
) -> list[Callable[[], AbstractContextManager[None]]]:
    """Turn adapters into members of an ensemble on one base.

    Args:
        model: The PEFT model.
        states: Their weights under PEFT's keys, as ``la.sample`` gives them.

    Returns:
        Members for :func:`member_probabilities`.
    """

    def member(state: Mapping[str, Tensor]) -> Callable[[], AbstractContextManager[None]]:
        @contextlib.contextmanager
        def moved() -> Iterator[None]:
            with moved_to(model, state):
                yield

        return moved

    return [member(state) for state in states]


def joined(parts: Sequence[FloatArray], absent: float) -> FloatArray:
    """Put batches of (B, K) one below the other; those of fewer options get more.

    Args:
        parts: The batches.
        absent: What an option that an example lacks has.

    Returns:
        (N, K).

    Raises:
        LaplaceLoRAError: There are no batches.
    """
    if not parts:
        raise LaplaceLoRAError("there are no examples; check the data loader.")
    widest = max(part.shape[1] for part in parts)
    wide = [np.pad(part, ((0, 0), (0, widest - part.shape[1])), constant_values=absent) for part in parts]
    return np.concatenate(wide)
