"""What methods spend, in seconds and in forward passes."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from laplace_lora.bench.settings import BenchConfig
from laplace_lora.bench.store import Store
from laplace_lora.bench.subjects import OpenedTraining
from laplace_lora.bench.trainings import Training, Trainings
from laplace_lora.methods.base import Stopwatch
from laplace_lora.methods.forward import class_logits

#: What methods spend time on.
STAGES = ("train", "fit", "tune", "predict")


class References:
    """Times of a forward pass of one training row, taken when an adapter has just been trained.

    Machines are not always as fast: what took long is held against a forward pass of the same minutes.
    """

    def __init__(self, config: BenchConfig, store: Store, trainings: Trainings) -> None:
        """Prepare.

        Args:
            config: Settings.
            store: Keeps them.
            trainings: Has the adapters.
        """
        self._config, self._store, self._trainings = config, store, trainings

    def of(self, training: Training) -> float:
        """Return seconds per row, measured now if they are not known.

        Args:
            training: One that has been trained.

        Returns:
            The seconds.
        """
        document = {
            "adapter": self._trainings.document(training),
            "batch_size": self._config.batch_size,
            "dtype": self._config.dtype,
        }
        found = self._store.find("references", document)
        if found is None:
            opened = OpenedTraining.of(training, self._trainings, self._config, 0)
            about = {"forward_seconds_per_row": forward_seconds(opened, opened.train)}
            with self._store.made("references", document, about):
                pass
            return about["forward_seconds_per_row"]
        seconds: float = self._store.entry(found)["forward_seconds_per_row"]
        return seconds


class Spent:
    """What a method spends, in seconds and in forward passes of one row.

    Attributes:
        forward: Seconds of a forward pass of one row, just before.
        stopwatch: Takes what the method does itself.
        peak: Most bytes that something took which was made before.
    """

    def __init__(self, forward: float) -> None:
        """Begin.

        Args:
            forward: Seconds of a forward pass of one row.
        """
        self.forward, self.stopwatch, self.peak = forward, Stopwatch(), 0
        self._before: list[tuple[float, float]] = []

    def add_training(self, seconds: float, forward: float, peak: int = 0) -> None:
        """Add a training that was done before.

        Args:
            seconds: What it took.
            forward: Seconds of a forward pass of one row then.
            peak: Most bytes that it took, where it was the method's own.
        """
        self._before.append((seconds, forward))
        self.peak = max(self.peak, peak)

    def to_dict(self) -> dict[str, Any]:
        """Return both as JSON values, by stage.

        Returns:
            ``seconds``, ``forward_passes`` and ``forward_seconds_per_row``.
        """
        seconds = dict.fromkeys(STAGES, 0.0) | self.stopwatch.seconds
        passes = {stage: value / self.forward for stage, value in seconds.items()}
        seconds["train"] += sum(took for took, _ in self._before)
        passes["train"] += sum(took / forward for took, forward in self._before)
        return {"seconds": seconds, "forward_passes": passes, "forward_seconds_per_row": self.forward}


def forward_seconds(opened: OpenedTraining, batches: Sequence[Mapping[str, Tensor]]) -> float:
    """Time a forward pass; the first one warms up.

    Args:
        opened: An adapter.
        batches: Some of its rows.

    Returns:
        Seconds per row.
    """
    times, rows = [], 0
    for _ in range(2):
        start = time.perf_counter()
        logits, _ = class_logits(opened.opened.model, opened.readout, batches)
        times.append(time.perf_counter() - start)
        rows = len(logits)
    return min(times) / rows
