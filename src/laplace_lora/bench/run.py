"""The grid: trainings and methods in order, each done once, results written as they come."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from laplace_lora.bench.costs import References
from laplace_lora.bench.judging import RESULTS, Cell, Judge
from laplace_lora.bench.keys import versions
from laplace_lora.bench.lines import RESULTS_NAME, kind_of_warning, line_of, write_lines
from laplace_lora.bench.machine import command, machine
from laplace_lora.bench.progress import Progress, beside_bars
from laplace_lora.bench.report import FILES, write_report
from laplace_lora.bench.settings import BenchConfig
from laplace_lora.bench.store import Store
from laplace_lora.bench.subjects import OpenedTraining
from laplace_lora.bench.trainings import ALL, MOST, Training, Trainings, checkpoints, step_of
from laplace_lora.commands.console import Console
from laplace_lora.commands.output import check_writable
from laplace_lora.commands.settings import plain
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.methods.base import Method
from laplace_lora.training import require_training


def bench(config: BenchConfig, console: Console) -> list[dict[str, Any]]:
    """Measure every method on every task and seed; what the cache has is not done again.

    Args:
        config: Settings.
        console: Takes messages.

    Returns:
        The lines of results.jsonl, which is written after every result.

    Raises:
        LaplaceLoRAError: Something is wrong with the grid; or adapters could not be trained or were refused by
            methods, after everything else was measured and written.
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
    for confined, names in config.confined().items():
        if confined:
            console.say("grid", f"{', '.join(names)}: on {', '.join(confined)} alone; --only none lifts that.")
        else:
            console.warn(f"{', '.join(names)}: confined to other tasks, and on none of these; --only none lifts that.")
    runs = [(task, seed) for task in config.tasks for seed in config.seeds]
    log = partial(console.say, "progress") if console.json_log else (lambda line: None)
    progress = Progress(_jobs(config, trainings, judge, runs), console.progress, log)
    grid = _Grid(config, judge, trainings, references, progress, console)
    about = {**plain(config), **versions(), **machine(), "command": command()}
    for name in FILES:  # of an earlier grid: they would stand beside other results
        (config.out / name).unlink(missing_ok=True)
    try:
        for task, seed in runs:
            grid.run(task, seed)
    except Exception:
        if grid.lines:  # what there is can be looked at
            write_report(config.out, grid.lines, store.root / RESULTS, about)
        raise
    finally:
        progress.close()
    lines, refused = grid.lines, grid.refused
    if not lines:
        raise LaplaceLoRAError(refused[0])
    write_report(config.out, lines, store.root / RESULTS, about)
    console.say("saved", f"{RESULTS_NAME}, {', '.join(FILES)} in {config.out}", out=str(config.out))
    if refused:
        raise LaplaceLoRAError(
            f"{len(refused)} results or trainings could not be had, as the warnings say, and everything else is "
            f"written; the first: {refused[0]}"
        )
    return lines


def _jobs(
    config: BenchConfig, trainings: Trainings, judge: Judge, runs: list[tuple[str, int]]
) -> list[tuple[str, str]]:
    """Return the kinds of all jobs that are to be done: those that the cache does not have."""
    found = [
        (task, "train")
        for task, seed in runs
        for training in _trainings(config, task, seed)
        if not trainings.is_trained(training)
    ]
    # A training's checkpoints are known when it has ended; methods along it are counted then as one.
    return found + [
        (task, method.name)
        for task, seed in runs
        for method in config.methods_on(task)
        if judge.find(Cell(task, seed, method)) is None
    ]


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
        references: Times of their forward passes.
        progress: Shows how far it is.
        console: Takes messages.
        lines: All results so far.
        refused: Why adapters could not be trained, and what methods said that would not have one.
        warned: Methods, and what they warned of, numbers aside.
    """

    config: BenchConfig
    judge: Judge
    trainings: Trainings
    references: References
    progress: Progress
    console: Console
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    refused: list[str] = dataclasses.field(default_factory=list)
    warned: set[tuple[str, str]] = dataclasses.field(default_factory=set)

    def run(self, task: str, seed: int) -> None:
        """Train what a run needs, and measure all methods on it.

        An adapter that cannot be trained holds up only what rests on it: why is a warning, and said at the end.
        """
        failed = {training for training in _trainings(self.config, task, seed) if not self._train(training)}
        training = Training(task, seed)
        methods = [
            method for method in self.config.methods_on(task) if failed.isdisjoint(Cell(task, seed, method).trainings)
        ]
        if not methods:
            return
        along = self.config.all_checkpoints and any(method.along_training for method in methods)
        folders = checkpoints(self.trainings.folder(training)) if along else []
        steps = [(folder.name, step_of(folder.name)) for folder in folders]
        if len(steps) == 1:
            self._warn(
                f"{training}: there is one checkpoint, the end, and nothing to ask along the training; give "
                "--save-every, or more --epochs."
            )
        self.measure(training, methods, steps)

    def _train(self, training: Training) -> bool:
        """Train an adapter if it is not there, and time a forward pass of it; say whether that could be done."""
        if self.trainings.is_trained(training):
            self.references.of(training)  # not there if a run was killed in between
            return True
        try:
            with self.progress.job((training.task, "train"), f"training {training}"), _noted(f"training {training}"):
                self.trainings.folder(training)
                self.references.of(training)
        except LaplaceLoRAError as error:
            self._refuse(f"training {training}: {error} Or leave the task out.")
            return False
        return True

    def measure(self, training: Training, methods: Sequence[Method], steps: list[tuple[str, int]]) -> None:
        """Measure all methods on one run, and write all lines up to it after every result.

        A method that refuses an adapter does not hold up the others: what it says is a warning, and said at the end.
        """
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
            job = (training.task, method.name)
            waiting = contextlib.nullcontext() if all(found) else self.progress.job(job, str(cells[-1]))
            done[method.name] = []
            with waiting:
                for cell, known in zip(cells, found, strict=True):
                    folder = known or self._measured(cell, opened)
                    if folder is not None:
                        done[method.name].append(line_of(cell, folder, self.config))
            self._pass_on(method, done[method.name])
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
            with _noted(str(cell)):
                return self.judge.measure(cell, opened[cell.training])
        except LaplaceLoRAError as error:
            self._refuse(f"{cell}: {error} Or leave the method out, by --methods or --only.")
            return None

    def _refuse(self, why: str) -> None:
        self.refused.append(why)
        self._warn(why)

    def _warn(self, message: str) -> None:
        with beside_bars():
            self.console.warn(message)

    def _pass_on(self, method: Method, lines: list[dict[str, Any]]) -> None:
        """Say what a method warned of once: on other adapters it says the same with other numbers."""
        for line in lines:
            for message in line["warnings"]:
                kind = method.name, kind_of_warning(message)
                if kind not in self.warned:
                    self.warned.add(kind)
                    self._warn(f"{line['task']}, seed {line['seed']}: {method.name}: {message}")


@contextlib.contextmanager
def _noted(job: str) -> Iterator[None]:
    """Note on an error in which of the grid's jobs it was; the command line says it where nobody foresaw the error."""
    try:
        yield
    except Exception as error:
        error.add_note(job)
        raise
