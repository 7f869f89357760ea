"""The adapters of a benchmark, trained once and kept."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from laplace_lora.bench.keys import device_identity, model_identity, rows_digest, versions
from laplace_lora.bench.settings import OTHER_SEEDS, BenchConfig
from laplace_lora.bench.store import Store
from laplace_lora.commands.console import Console
from laplace_lora.commands.readout_choice import ReadoutWish
from laplace_lora.commands.settings import plain
from laplace_lora.commands.sources import EVALUATION, open_source
from laplace_lora.commands.train import TrainConfig, train
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.tasks import TaskSplit

#: Of the training rows: all of them, or those before the held-out ones.
ALL, MOST = "all", "most"
_ADAPTER = "adapter"


@dataclasses.dataclass(frozen=True)
class Training:
    """One training of a benchmark.

    Attributes:
        task: Its task.
        seed: Its seed.
        part: ``all`` rows, or ``most``, which leaves out the held-out ones.
    """

    task: str
    seed: int
    part: str = ALL

    def others(self, count: int) -> list["Training"]:
        """Return the trainings of an ensemble's other adapters.

        Args:
            count: How many.

        Returns:
            The same with other seeds.
        """
        return [dataclasses.replace(self, seed=self.seed + OTHER_SEEDS * (index + 1)) for index in range(count)]

    def __str__(self) -> str:
        """Return what progress calls it."""
        return f"{self.task}, seed {self.seed}{'' if self.part == ALL else ', without the held-out rows'}"


class Trainings:
    """Trains adapters as they are asked for, or finds them in the cache."""

    def __init__(self, config: BenchConfig, store: Store, console: Console) -> None:
        """Prepare.

        Args:
            config: Settings.
            store: Keeps them.
            console: Takes messages of trainings.
        """
        self._config, self._store = config, store
        self._console = Console(quiet=True, json_log=console.json_log)
        self._identity = model_identity(config.base, config.revision)
        self._documents: dict[Training, dict[str, Any]] = {}
        self._splits: dict[tuple[str, str], TaskSplit] = {}
        self._digests: dict[str, str] = {}
        self._warned: set[str] = set()

    def warn_once(self, message: str) -> None:
        """Warn of what every adapter of a task would say again.

        Args:
            message: One line.
        """
        if message not in self._warned:
            self._warned.add(message)
            self._console.warn(message)

    def rows(self, task: str, part: str) -> TaskSplit:
        """Return training rows.

        Args:
            task: Name of the task.
            part: ``all``, ``most`` or ``held_out``.

        Returns:
            The rows.
        """
        config = self._config
        whole = self._open(f"{task}:train" + ("" if config.examples is None else f"[:{config.examples}]"), "train")
        if part == ALL:
            return whole
        kept = len(whole) - max(1, round(config.held_out * len(whole)))
        return self._open(f"{task}:train[:{kept}]" if part == MOST else f"{task}:train[{kept}:{len(whole)}]", "train")

    def test_rows(self, task: str) -> TaskSplit:
        """Return test rows.

        Args:
            task: Name of the task.

        Returns:
            The rows.
        """
        whole = self._open(task, EVALUATION)
        limit = self._config.test_examples
        return whole if limit is None else self._open(f"{task}:{whole.split}[:{limit}]", EVALUATION)

    def other_rows(self, source: str) -> TaskSplit:
        """Return rows of another kind, as many as test rows.

        Args:
            source: A task, with or without a split.

        Returns:
            The rows.
        """
        whole = self._open(source, EVALUATION)
        limit = self._config.test_examples
        if limit is None or whole.part:
            return whole
        return self._open(f"{source.partition(':')[0]}:{whole.split}[:{limit}]", EVALUATION)

    def digest(self, rows: TaskSplit) -> str:
        """Return the digest of rows, computed once.

        Args:
            rows: From one of the above.

        Returns:
            64 hexadecimal digits.
        """
        if str(rows) not in self._digests:
            self._digests[str(rows)] = rows_digest(rows)
        return self._digests[str(rows)]

    def document(self, training: Training) -> dict[str, Any]:
        """Return what an adapter depends on.

        Args:
            training: Which.

        Returns:
            JSON values.
        """
        if training not in self._documents:
            config, rows = self._config, self.rows(training.task, training.part)
            self._documents[training] = {
                "base": self._identity,
                "data": {"task": training.task, "rows": len(rows), "sha256": self.digest(rows)},
                "settings": plain(dataclasses.replace(config.training, seed=training.seed)),
                "max_length": config.max_length,
                "prompts": config.prompts,
                "readout": config.readout,
                "padding_side": config.padding_side,
                "quantization": config.quantization,
                **device_identity(config.device),
                "versions": versions(),
            }
        return self._documents[training]

    def is_trained(self, training: Training) -> bool:
        """Say whether an adapter is there.

        Args:
            training: Which.

        Returns:
            Whether it is.
        """
        return self._store.find("adapters", self.document(training)) is not None

    def folder(self, training: Training) -> Path:
        """Return an adapter, trained now if it is not there.

        Args:
            training: Which.

        Returns:
            Its folder, with checkpoints and the starting point.
        """
        document = self.document(training)
        found = self._store.find("adapters", document)
        if found is None:
            self._train(training, document)
            found = self._store.find("adapters", document)
            assert found is not None
        return found / _ADAPTER

    def seconds(self, training: Training) -> float:
        """Return what a training took.

        Args:
            training: One that has been trained.

        Returns:
            Seconds.
        """
        found = self._store.find("adapters", self.document(training))
        assert found is not None
        seconds: float = self._store.entry(found)["seconds"]
        return seconds

    def _train(self, training: Training, document: dict[str, Any]) -> None:
        config = self._config
        about: dict[str, Any] = {"training": str(training)}
        with self._store.made("adapters", document, about) as staged:
            settings = TrainConfig(
                model=config.base,
                data=self.rows(training.task, training.part),
                out=staged / _ADAPTER,
                max_length=config.max_length,
                revision=config.revision,
                training=dataclasses.replace(config.training, seed=training.seed),
                readout=ReadoutWish(config.readout),
                quantization=config.quantization,
                padding_side=config.padding_side,
                device=config.device,
            )
            start = time.perf_counter()
            train(settings, self._console)
            about["seconds"] = time.perf_counter() - start

    def _open(self, text: str, default: str) -> TaskSplit:
        """Choose rows; those of a split are read once however often they are asked for."""
        if (text, default) in self._splits:
            return self._splits[text, default]
        found = open_source(text, default, self._config.data_dir, self._config.prompts)
        if not isinstance(found, TaskSplit):
            name = text.partition(":")[0]
            raise LaplaceLoRAError(
                f"{name} is no task but the name of a file, which has no splits; choose a task (laplace-lora tasks), "
                "or run elsewhere if the file hides a task of that name."
            )
        self._splits[text, default] = found
        return found


def checkpoints(adapter: Path) -> list[Path]:
    """Return the checkpoints of a training in order.

    Args:
        adapter: Its folder.

    Returns:
        Their folders.
    """
    return sorted((adapter / "checkpoints").iterdir(), key=lambda path: step_of(path.name))


def step_of(checkpoint: str) -> int:
    """Return the step of a checkpoint by its name.

    Args:
        checkpoint: ``checkpoint-25``.

    Returns:
        The step.
    """
    return int(checkpoint.rpartition("-")[2])
