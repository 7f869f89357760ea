"""The grid: trainings and methods in order, each done once, results written as they come."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laplace_lora.bench.costs import References
from laplace_lora.bench.judging import RESULTS, Cell, Judge
from laplace_lora.bench.keys import versions
from laplace_lora.bench.lines import RESULTS_NAME, line_of, write_lines
from laplace_lora.bench.machine import command, machine
from laplace_lora.bench.progress import Progress
from laplace_lora.bench.report import FILES, write_report
from laplace_lora.bench.settings import BenchConfig
from laplace_lora.bench.store import Store
from laplace_lora.bench.subjects import OpenedTraining
from laplace_lora.bench.trainings import ALL, MOST, Training, Trainings, checkpoints, step_of
from laplace_lora.commands.console import Console
from laplace_lora.commands.output import check_writable
from laplace_lora.commands.settings import plain
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.training import require_training


def bench(config: BenchConfig, console: Console) -> list[dict[str, Any]]:
    """Measure every method on every task and seed; what the cache has is not done again.

    Args:
        config: Settings.
        console: Takes messages.

    Returns:
        The lines of results.jsonl, which is written after every result.

    Raises:
        LaplaceLoRAError: Something is wrong with the grid; or methods refused adapters, after everything else was
            measured and written.
    """
    require_training()
    check_writable(config.out)
    store = Store(config.cache)
    trainings = Trainings(config, store, console)
    references = References(config, store, trainings)
    judge = Judge(config, store, trainings, references)
    for task in config.tasks:  # wrong names and missing files are said before anything is trained
        console.say("data", trainings.rows(task, ALL).shown)
        console.say("data", trainings.test_rows(task).shown)
        for name in config.ood.get(task, ()):
            console.say("data", trainings.other_rows(name).shown)
    runs = [(task, seed) for task in config.tasks for seed in config.seeds]
    missing = [training for run in runs for training in _trainings(config, *run) if not trainings.is_trained(training)]
    kinds: list[Any] = [(training.task, "train") for training in missing]
    # A training's checkpoints are known when it has ended; methods along it are counted then as one.
    kinds += [(task, method.name) for task, _ in runs for method in config.methods_on(task)]
    progress = Progress(kinds, console.progress)
    grid = _Grid(config, judge, trainings, progress, console)
    try:
        for task, seed in runs:
            for training in _trainings(config, task, seed):
                if not trainings.is_trained(training):
                    with progress.job((task, "train"), f"training {training}"), _named(f"training {training}"):
                        trainings.folder(training)
                        references.of(training)
                else:
                    references.of(training)  # of a run that was killed in between
            training = Training(task, seed)
            along = config.all_checkpoints and any(method.along_training for method in config.methods_on(task))
            folders = checkpoints(trainings.folder(training)) if along else []
            steps = [(folder.name, step_of(folder.name)) for folder in folders]
            if len(steps) == 1:
                console.warn(
                    f"{training}: there is one checkpoint, the end, and nothing to ask along the training; give "
                    "--save-every, or more --epochs."
                )
            grid.measure(training, steps)
    finally:
        progress.close()
    lines, refused = grid.lines, grid.refused
    if not lines:
        raise LaplaceLoRAError(refused[0])
    about = {**plain(config), **versions(), **machine(), "command": command()}
    write_report(config.out, lines, store.root / RESULTS, about)
    console.say("saved", f"{RESULTS_NAME}, {', '.join(FILES)} in {config.out}", out=str(config.out))
    if refused:
        raise LaplaceLoRAError(
            f"everything else is written, and {len(refused)} results could not be had, as the warnings say; the first: "
            f"{refused[0]}"
        )
    return lines


def _trainings(config: BenchConfig, task: str, seed: int) -> list[Training]:
    """Return the adapters that a run needs, its own first."""
    methods = config.methods_on(task)
    on_all = [method for method in methods if not method.needs_held_out]
    others = max((method.needs_others for method in on_all), default=0)
    found = [Training(task, seed), *Training(task, seed).others(others)] if on_all else []
    return found + ([Training(task, seed, MOST)] if any(method.needs_held_out for method in methods) else [])


@dataclasses.dataclass(frozen=True)
class _Grid:
    """A grid on its way.

    Attributes:
        config: Settings.
        judge: Measures.
        trainings: Has the adapters.
        progress: Shows how far it is.
        console: Takes messages.
        lines: All results so far.
        refused: What methods said that would not have an adapter.
    """

    config: BenchConfig
    judge: Judge
    trainings: Trainings
    progress: Progress
    console: Console
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)

    def measure(self, training: Training, steps: list[tuple[str, int]]) -> None:
        """Measure all methods on one run, and write all lines up to it after every result.

        A method that refuses an adapter does not hold up the others: what it says is a warning, and said at the end.
        """
        methods = self.config.methods_on(training.task)
        done: dict[str, list[dict[str, Any]]] = {}
        opened: dict[Training, OpenedTraining] = {}
        before = list(self.lines)
        # Methods on the same adapter one after the other: it is opened once, and one model is held at a time.
        for method in sorted(methods, key=lambda method: method.needs_held_out):
            cells = [Cell(training.task, training.seed, method)]
            if method.along_training:
                # The last checkpoint is the adapter itself.
                cells = [Cell(training.task, training.seed, method, name, step) for name, step in steps[:-1]] + cells
            found = [self.judge.find(cell) for cell in cells]
            with self.progress.job((training.task, method.name), str(cells[-1]), cached=all(found)):
                done[method.name] = []
                for cell, known in zip(cells, found, strict=True):
                    folder = known or self._measured(cell, opened)
                    if folder is None:
                        break
                    done[method.name].append(line_of(cell, folder, self.config))
            self.lines[:] = [*before, *(line for each in methods for line in done.get(each.name, ()))]
            if self.lines:
                write_lines(self.config.out / RESULTS_NAME, self.lines)

    def _measured(self, cell: Cell, opened: dict[Training, OpenedTraining]) -> Path | None:
        """Measure a cell; None where its method refuses the adapter."""
        if cell.training not in opened:
            opened.clear()
            methods = self.config.methods_on(cell.task)
            others = max((method.needs_others for method in methods), default=0)
            opened[cell.training] = OpenedTraining.of(cell.training, self.trainings, self.config, others)
        try:
            return self.judge.measure(cell, opened[cell.training])
        except LaplaceLoRAError as error:
            self.refused.append(f"{cell}: {error} Or leave the method out, by --methods or --only.")
            self.console.warn(self.refused[-1])
            return None


@contextlib.contextmanager
def _named(job: str) -> Iterator[None]:
    """Say in an error which of the grid's jobs it ended; what was done before is kept."""
    try:
        yield
    except LaplaceLoRAError as error:
        raise LaplaceLoRAError(f"{job}: {error}") from error
