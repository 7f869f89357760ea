"""The grid: trainings and methods in order, each done once, results written as they come."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laplace_lora.bench.costs import References
from laplace_lora.bench.judging import RESULTS, Cell, Judge, step_of
from laplace_lora.bench.keys import versions
from laplace_lora.bench.lines import RESULTS_NAME, line_of, write_lines
from laplace_lora.bench.machine import command, machine
from laplace_lora.bench.progress import Progress
from laplace_lora.bench.report import FILES, write_report
from laplace_lora.bench.settings import OTHER_SEEDS, BenchConfig
from laplace_lora.bench.store import Store
from laplace_lora.bench.subjects import OpenedTraining
from laplace_lora.bench.trainings import MOST, Training, Trainings
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
    """
    require_training()
    check_writable(config.out)
    store = Store(config.cache)
    trainings = Trainings(config, store, console)
    judge, references = Judge(config, store, trainings), References(config, store, trainings)
    for task in config.tasks:  # wrong names and missing files are said before anything is trained
        console.say("data", trainings.rows(task, "all").shown)
        console.say("data", trainings.test_rows(task).shown)
        for name in config.ood.get(task, ()):
            console.say("data", trainings.other_rows(name).shown)
    runs = [(task, seed) for task in config.tasks for seed in config.seeds]
    missing = [training for run in runs for training in _trainings(config, *run) if not trainings.is_trained(training)]
    kinds: list[Any] = [(training.task, "train") for training in missing]
    # A training's checkpoints are known when it has ended; methods along it are counted then as one.
    kinds += [(task, method.name) for task, _ in runs for method in config.methods_on(task)]
    progress = Progress(kinds, console.progress)
    lines: list[dict[str, Any]] = []
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
            steps = checkpoints(trainings.folder(training)) if along else []
            if len(steps) == 1:
                console.warn(
                    f"{training}: there is one checkpoint, the end, and nothing to ask along the training; give "
                    "--save-every, or more --epochs."
                )
            lines += _measured(config, judge, trainings, training, steps, progress, lines)
    finally:
        progress.close()
    about = {**plain(config), **versions(), **machine(), "command": command()}
    write_report(config.out, lines, store.root / RESULTS, about)
    console.say("saved", f"{RESULTS_NAME}, {', '.join(FILES)} in {config.out}", out=str(config.out))
    return lines


def _trainings(config: BenchConfig, task: str, seed: int) -> list[Training]:
    """Return the adapters that a run needs, its own first."""
    methods = config.methods_on(task)
    on_all = [method for method in methods if not method.needs_held_out]
    others = max((method.needs_others for method in on_all), default=0)
    found = [Training(task, seed + OTHER_SEEDS * index) for index in range(others + 1)] if on_all else []
    return found + ([Training(task, seed, MOST)] if any(method.needs_held_out for method in methods) else [])


def _measured(
    config: BenchConfig,
    judge: Judge,
    trainings: Trainings,
    training: Training,
    steps: list[tuple[str, int]],
    progress: Progress,
    before: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Measure all methods on one run, and write all lines up to it after every result."""
    methods = config.methods_on(training.task)
    most_others = max((method.needs_others for method in methods), default=0)
    done: dict[str, list[dict[str, Any]]] = {}
    opened: dict[Training, OpenedTraining] = {}
    # Methods on the same adapter one after the other: it is opened once, and one model is held at a time.
    for method in sorted(methods, key=lambda method: method.needs_held_out):
        cells = [Cell(training.task, training.seed, method)]
        if method.along_training:
            # The last checkpoint is the adapter itself.
            cells = [Cell(training.task, training.seed, method, name, step) for name, step in steps[:-1]] + cells
        found = [judge.find(cell) for cell in cells]
        with progress.job((training.task, method.name), str(cells[-1]), cached=all(found)):
            done[method.name] = []
            for cell, folder in zip(cells, found, strict=True):
                if folder is None:
                    if cell.training not in opened:
                        opened.clear()
                        opened[cell.training] = OpenedTraining.of(cell.training, trainings, config, most_others)
                    with _named(f"{cell}", " Or leave the method out, by --methods or --only."):
                        folder = judge.measure(cell, opened[cell.training])
                done[method.name].append(line_of(cell, folder, config))
        lines = [line for method in methods for line in done.get(method.name, ())]
        write_lines(config.out / RESULTS_NAME, [*before, *lines])
    return [line for method in methods for line in done[method.name]]


@contextlib.contextmanager
def _named(job: str, remedy: str = "") -> Iterator[None]:
    """Say in an error which of the grid's jobs it ended; what was done before is kept."""
    try:
        yield
    except LaplaceLoRAError as error:
        raise LaplaceLoRAError(f"{job}: {error}{remedy}") from error


def checkpoints(adapter: Path) -> list[tuple[str, int]]:
    """Return the checkpoints of a training in order.

    Args:
        adapter: Its folder.

    Returns:
        Name and step of each.
    """
    found = ((path.name, step_of(path.name)) for path in (adapter / "checkpoints").iterdir())
    return sorted(found, key=lambda pair: pair[1])
