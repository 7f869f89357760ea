"""One method on one adapter: fitted, asked, timed, and kept."""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from laplace_lora.adapters import moved_to
from laplace_lora.bench.costs import References, Spent, forward_seconds
from laplace_lora.bench.keys import device_identity, versions
from laplace_lora.bench.machine import machine
from laplace_lora.bench.meters import Memory
from laplace_lora.bench.settings import BenchConfig
from laplace_lora.bench.store import Store
from laplace_lora.bench.subjects import Asked, OpenedTraining, States
from laplace_lora.bench.trainings import ALL, MOST, Training, Trainings, step_of
from laplace_lora.commands.methods import as_wide
from laplace_lora.evaluation import OUTPUTS_FILE, Outputs, ood_scores, save_outputs, score
from laplace_lora.evaluation.outputs import FloatArray
from laplace_lora.methods.base import Answers, Method, State, Subject

#: The checkpoint that stands for the end of a training.
LAST = "last"
#: Kind of the entries that hold results.
RESULTS = "results"
_STATE_FILE = "state.safetensors"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one adapter.

    Attributes:
        task: Its task.
        seed: Of the training.
        method: What is measured.
        checkpoint: Name of a checkpoint, or ``last``.
        step: Steps up to the checkpoint; None for the last.
    """

    task: str
    seed: int
    method: Method
    checkpoint: str = LAST
    step: int | None = None

    @property
    def training(self) -> Training:
        """The adapter's training."""
        return Training(self.task, self.seed, MOST if self.method.needs_held_out else ALL)

    @property
    def trainings(self) -> list[Training]:
        """The trainings of all adapters that the method rests on."""
        return [self.training, *self.training.others(self.method.needs_others)]

    def __str__(self) -> str:
        """Return what progress calls it."""
        place = "" if self.checkpoint == LAST else f", {self.checkpoint}"
        return f"{self.task}, seed {self.seed}{place}: {self.method.name}"


class Judge:
    """Measures cells, or finds them in the cache."""

    def __init__(self, config: BenchConfig, store: Store, trainings: Trainings, references: References) -> None:
        """Prepare.

        Args:
            config: Settings.
            store: Keeps what was measured.
            trainings: Has the adapters.
            references: Times of their forward passes.
        """
        self._config, self._store, self._trainings, self._references = config, store, trainings, references
        self._device = device_identity(config.device)

    def document(self, cell: Cell) -> dict[str, Any]:
        """Return what a cell's result depends on.

        Args:
            cell: Which.

        Returns:
            JSON values.
        """
        config, trainings, method = self._config, self._trainings, cell.method
        held_out = trainings.digest(trainings.rows(cell.task, "held_out")) if method.needs_held_out else None
        return {
            "adapter": trainings.document(cell.training),
            "others": [trainings.document(other) for other in cell.training.others(method.needs_others)],
            "checkpoint": cell.checkpoint,
            "method": method.name,
            "settings": method.settings(),
            "held_out": held_out,
            "test": trainings.digest(trainings.test_rows(cell.task)),
            "ood": {name: trainings.digest(trainings.other_rows(name)) for name in config.ood.get(cell.task, ())},
            "batch_size": config.batch_size,
            "dtype": config.dtype,
            **self._device,
            "versions": versions(),
        }

    def find(self, cell: Cell) -> Path | None:
        """Look for a cell's result.

        Args:
            cell: Which.

        Returns:
            Its folder, or None.
        """
        return self._store.find(RESULTS, self.document(cell))

    def measure(self, cell: Cell, opened: OpenedTraining) -> Path:
        """Fit a method and ask it about the test rows and those of other kinds.

        Args:
            cell: Which.
            opened: Its adapter.

        Returns:
            The folder of the result.
        """
        document = self.document(cell)
        about: dict[str, Any] = {"cell": str(cell), "machine": machine()}
        with self._store.made(RESULTS, document, about) as staged:
            state = self._state(cell, opened)
            with moved_to(opened.opened.model, state), _overheard() as said:
                about |= self._measured(cell, opened, staged)
            about["warnings"] = sorted(said)
        found = self._store.find(RESULTS, document)
        assert found is not None
        return found

    def _state(self, cell: Cell, opened: OpenedTraining) -> Mapping[str, Tensor]:
        folder = opened.folder if cell.checkpoint == LAST else opened.folder / "checkpoints" / cell.checkpoint
        state: Mapping[str, Tensor] = States([folder])[0]
        return state

    def _measured(self, cell: Cell, opened: OpenedTraining, staged: Path) -> dict[str, Any]:
        """Return what is to be known of a result; write what the method answered."""
        spent, memory, test = Spent(forward_seconds(opened, opened.test.batches)), Memory(), opened.test
        subject, stopwatch = self._subject(cell, opened, spent), spent.stopwatch
        device = next(subject.model.parameters()).device
        with memory.watched(device):
            fitted = cell.method.fit(subject)
            start = time.perf_counter()
            answers = fitted.answer(test.batches)
            stopwatch.add("predict", time.perf_counter() - start)
            outside = {name: fitted.answer(asked.batches) for name, asked in opened.outside.items()}
        name = cell.method.name
        assert test.labels is not None
        save_outputs(
            staged / OUTPUTS_FILE,
            _outputs(name, answers, test),
            {key: _outputs(name, answer, opened.outside[key]) for key, answer in outside.items()},
        )
        return {
            "figures": score(answers.probabilities, test.labels).to_dict(),
            "rows": {"train": sum(len(batch["labels"]) for batch in opened.train), "test": len(test.file)},
            "total_steps": step_of(opened.checkpoints[-1].name),
            "cut": opened.cut,
            "own_split": bool(getattr(test.file.source, "own_split", True)),
            "ood": {key: _told_apart(name, answers, answer, opened.outside[key]) for key, answer in outside.items()},
            "found": fitted.found,
            "stored_bytes": fitted.stored_bytes,
            "peak_memory_bytes": max(memory.peak, spent.peak),
            **self._costs(cell, spent),
        }

    def _subject(self, cell: Cell, opened: OpenedTraining, spent: Spent) -> Subject:
        device = next(opened.opened.model.parameters()).device
        folders = opened.checkpoints
        if cell.checkpoint != LAST:
            names = [folder.name for folder in folders]
            folders = folders[: names.index(cell.checkpoint) + 1]
        return Subject(
            opened.opened.model,  # type: ignore[arg-type]
            opened.readout,
            opened.train,
            opened.start,
            opened.held_out,
            States(folders),
            opened.others[: cell.method.needs_others],
            opened.retrain,
            lambda name, make: self._remembered(cell, name, make, spent, device),
            cell.seed,
            spent.stopwatch,
        )

    def _remembered(
        self, cell: Cell, name: str, make: Callable[[], State], spent: Spent, device: torch.device
    ) -> State:
        """Make a state once for all methods that name it alike; what it took counts for each of them."""
        # A state is trained in the dtype that the model is asked in; the checkpoint's own has no part in the key.
        asked = {} if self._config.dtype == "auto" else {"dtype": self._config.dtype}
        document = {
            "adapter": self._trainings.document(cell.training),
            "checkpoint": cell.checkpoint,
            "state": name,
            **asked,
            **self._device,
        }
        found = self._store.find("states", document)
        if found is not None:
            entry = self._store.entry(found)
            spent.add_training(entry["seconds"], entry["forward_seconds_per_row"], entry["peak_memory_bytes"])
            _repeat(entry.get("warnings", ()))
            return load_file(found / _STATE_FILE)
        about: dict[str, Any] = {"state": name, "forward_seconds_per_row": spent.forward}
        memory = Memory()
        with self._store.made("states", document, about) as staged:
            start = time.perf_counter()
            with memory.watched(device), _overheard() as said:
                state = make()
            about |= {"seconds": time.perf_counter() - start, "peak_memory_bytes": memory.peak}
            about["warnings"] = sorted(said)
            save_file({key: value.contiguous() for key, value in state.items()}, staged / _STATE_FILE)
        _repeat(said)
        return state

    def _costs(self, cell: Cell, spent: Spent) -> dict[str, Any]:
        """Add the trainings of the adapters that a method rests on."""
        for training in cell.trainings if cell.method.uses_adapter else []:
            spent.add_training(self._trainings.seconds(training), self._references.of(training))
        return spent.to_dict()


@contextlib.contextmanager
def _overheard() -> Iterator[set[str]]:
    """Collect what is warned of; what libraries tell developers is of no interest."""
    found: set[str] = set()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield found
    found |= {str(w.message) for w in said if issubclass(w.category, UserWarning | RuntimeWarning)}


def _repeat(said: Iterable[str]) -> None:
    """Warn again of what a training warned of: it belongs to every method that uses what was trained."""
    for message in said:
        warnings.warn(message, stacklevel=2)


def _outputs(name: str, answers: Answers, asked: Asked) -> Outputs:
    labels = asked.labels if asked.labels is not None and _fit(asked, answers) else None
    return Outputs({name: answers.probabilities}, {}, _nats(name, answers), labels)


def _nats(name: str, answers: Answers) -> dict[str, FloatArray]:
    return {} if answers.mutual_information is None else {name: answers.mutual_information}


def _fit(asked: Asked, answers: Answers) -> bool:
    """Say whether the labels are classes that the method knows."""
    assert asked.labels is not None
    return bool(asked.labels.max() < answers.probabilities.values.shape[1])


def _told_apart(name: str, inside: Answers, outside: Answers, asked: Asked) -> dict[str, Any]:
    """Return how well data of another kind are told from the test rows, and their figures where labels fit."""
    near, far = as_wide({"map": inside.probabilities}, {"map": outside.probabilities})
    detection = ood_scores(
        {name: near["map"]},
        {name: far["map"]},
        in_mutual_information=_nats(name, inside),
        out_mutual_information=_nats(name, outside),
    ).methods[name]
    found: dict[str, Any] = {
        "rows": len(asked.file),
        "labels_ignored": asked.labels_ignored,
        "detection": {
            by: {"auroc": rates.auroc.estimate, "fpr95": rates.fpr95.estimate} for by, rates in detection.items()
        },
    }
    if asked.labels is not None and _fit(asked, outside):
        found["figures"] = score(outside.probabilities, asked.labels).to_dict()
    return found
