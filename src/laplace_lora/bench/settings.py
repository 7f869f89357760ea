"""What a benchmark is told: base, tasks, methods, seeds, and how adapters are trained."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from laplace_lora.errors import LaplaceLoRAError, advice_on
from laplace_lora.methods.table import METHODS, Method
from laplace_lora.tasks import find_task, is_task
from laplace_lora.training import TrainingSettings

#: Seeds of an ensemble's other adapters: the run's own, and so many further.
OTHER_SEEDS = 1000
_LAST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Settings of ``bench``.

    Attributes:
        base: Folder or hub id of the base model.
        tasks: Names of tasks, in any spelling; kept in that of the table of tasks.
        methods: Names of methods.
        seeds: Of training, one run each.
        out: Folder for results.jsonl, the tables and the page.
        cache: Folder for adapters and predictions, kept by what they depend on.
        data_dir: Holds copies of tasks; None for the hub.
        ood: Other data by task: task name to sources as the command line writes them.
        only: Tasks that a method is confined to, by the method's name; all where it is not there.
        training: Of the adapters; its seed is not used.
        examples: Training rows of a task, its first; all if None.
        test_examples: Test rows, the first of the split that figures are of; all if None.
        held_out: Share of the training rows, the last, that methods which choose something on labelled rows do not
            train on.
        all_checkpoints: Whether methods that can be asked along a training are, at every checkpoint.
        max_length: Most tokens per input; the model's limit if None.
        batch_size: Rows per forward pass, of everything but training.
        prompts: Whose prompts a language model is asked.
        readout: How answers are read; by model and task if None.
        padding_side: ``left`` or ``right``, of a language model.
        quantization: How to quantise the base; None for not at all.
        revision: Of the base on the hub.
        dtype: Of the base, when it is asked; training is in float32.
        device: As for every verb.
    """

    base: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    cache: Path
    data_dir: Path | None = None
    ood: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    only: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    training: TrainingSettings = dataclasses.field(default_factory=TrainingSettings)
    examples: int | None = None
    test_examples: int | None = None
    held_out: float = 0.2
    all_checkpoints: bool = False
    max_length: int | None = None
    batch_size: int = 16
    prompts: str | None = None
    readout: str | None = None
    padding_side: str | None = None
    quantization: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse an empty grid, unknown names, what is named twice, and seeds that generators do not take.

        Raises:
            LaplaceLoRAError: Something is.
        """
        object.__setattr__(self, "tasks", tuple(map(_task, self.tasks)))
        ood: dict[str, tuple[str, ...]] = {}
        for name, values in self.ood.items():
            ood[_task(name)] = (*ood.get(_task(name), ()), *values)
        object.__setattr__(self, "ood", ood)
        only = {name: tuple(map(_task, values)) for name, values in self.only.items()}
        object.__setattr__(self, "only", only)
        for name in ("tasks", "methods", "seeds"):
            values = getattr(self, name)
            if not values:
                raise LaplaceLoRAError(f"there are no {name}; name at least one with --{name}.")
            if "" in values:
                raise LaplaceLoRAError(f"--{name} has an empty name; write it as A,B,C.")
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise LaplaceLoRAError(f"--{name} names {twice} twice; leave one out.")
        for name in self.methods:
            if name not in METHODS:
                raise LaplaceLoRAError(f"there is no method {name!r}; {_choose(name, METHODS)}")
        for name in self.ood:
            if name not in self.tasks:
                raise LaplaceLoRAError(f"--ood {name} is none of --tasks; name a task of the grid, and its other data.")
        for name, values in only.items():
            if name not in self.methods:
                raise LaplaceLoRAError(f"--only {name} is none of --methods; {_choose(name, self.methods)}")
            unknown = next((value for value in values if value not in self.tasks), None)
            if unknown is not None:
                raise LaplaceLoRAError(f"--only {name} names {unknown}, which is none of --tasks; check its name.")
        if not any(self.methods_on(task) for task in self.tasks):
            raise LaplaceLoRAError(
                f"--only leaves nothing to measure: {', '.join(self.methods)} on none of {', '.join(self.tasks)}; name "
                "other tasks or methods, or confine these to others."
            )
        self._check_seeds()
        if not 0.0 < self.held_out < 1.0:
            raise LaplaceLoRAError(f"held_out={self.held_out} is no share of the rows; give one between 0 and 1.")

    def _check_seeds(self) -> None:
        others = max((METHODS[name].needs_others for name in self.methods), default=0)
        for seed in self.seeds:
            if not 0 <= seed <= _LAST_SEED - OTHER_SEEDS * others:
                raise LaplaceLoRAError(
                    f"seed {seed} is none that all generators take; give 0 to {_LAST_SEED - OTHER_SEEDS * others}."
                )
            apart = range(OTHER_SEEDS, OTHER_SEEDS * (others + 1), OTHER_SEEDS)
            shared = next((other for other in self.seeds if other - seed in apart), None)
            if shared is not None:
                raise LaplaceLoRAError(
                    f"an ensemble's other adapters have seeds {OTHER_SEEDS} apart, so that those of seeds {seed} and "
                    f"{shared} would share some; give other seeds."
                )

    def methods_on(self, task: str) -> list[Method]:
        """Return the methods that are measured on a task, in their order.

        Args:
            task: Its name.

        Returns:
            The methods.
        """
        return [METHODS[name] for name in self.methods if task in self.only.get(name, self.tasks)]

    def confined(self) -> dict[tuple[str, ...], list[str]]:
        """Return the methods that are not measured on all tasks.

        Returns:
            Methods by the tasks that they are confined to, which may be none of the grid's.
        """
        found: dict[tuple[str, ...], list[str]] = {}
        for name in self.methods:
            if set(self.only.get(name, self.tasks)) != set(self.tasks):
                found.setdefault(self.only[name], []).append(name)
        return found


def _choose(name: str, names: Iterable[str]) -> str:
    """Advise to choose from all names, the one that may have been meant before the others."""
    return advice_on(name, names, f"choose from {', '.join(names)}.")


def _task(name: str) -> str:
    """Return the one name of a task; what is none keeps its own, and is refused where its rows are wanted."""
    return find_task(name).name if is_task(name) else name


@dataclasses.dataclass(frozen=True)
class BenchPreset:
    """A grid by name.

    Attributes:
        about: What it is, in one line.
        training: Name of the training preset it goes with.
        tasks: Tasks.
        methods: Methods.
        only: Tasks that a method is confined to.
        ood: Other data by task.
        examples: Training rows of a task.
        test_examples: Test rows of a task.
        changes: Of the training preset's settings.
    """

    about: str
    training: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    only: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    ood: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    examples: int | None = None
    test_examples: int | None = None
    changes: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def ood_of(self, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the other data of tasks that are in the grid.

        Args:
            tasks: Their names, in any spelling.

        Returns:
            Sources by task.
        """
        return {name: values for name, values in self.ood.items() if name in map(_task, tasks)}

    def only_of(self, tasks: Sequence[str], methods: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the tasks of the grid that methods are confined to.

        Args:
            tasks: Names of the grid's, in any spelling.
            methods: Names of the grid's.

        Returns:
            Tasks by method; none at all where those of a method are not in the grid.
        """
        known = [*map(_task, tasks)]
        return {
            name: tuple(value for value in values if value in known)
            for name, values in self.only.items()
            if name in methods
        }


_PAPER_TASKS = ("winogrande_s", "arc_challenge", "arc_easy", "winogrande_m", "openbookqa", "boolq")
_SHIFTS = ("arc_easy", "arc_challenge", "mmlu_cs", "mmlu_eng", "mmlu_law", "mmlu_health")
_COSTLY = dict.fromkeys(("swag", "blob", "blob_mean", "tfb"), ("sst2", "openbookqa"))
BENCH_PRESETS = {
    "small": BenchPreset(
        about="six tasks of 200 rows for two CPU cores and an encoder of some 20M weights; ours",
        training="small",
        tasks=("sst2", "rte", "boolq", "arc_easy", "openbookqa", "winogrande_s"),
        methods=tuple(METHODS),
        only=_COSTLY,
        ood={"openbookqa": ("arc_easy", "mmlu_cs"), "sst2": ("rte",)},
        examples=200,
        test_examples=300,
        changes={"dropout": 0.1, "epochs": 8, "learning_rate": 2e-3, "batch_size": 8},
    ),
    "paper": BenchPreset(
        about="the paper's six tasks and its shifts, for Llama-2-7B",
        training="paper",
        tasks=_PAPER_TASKS,
        methods=tuple(METHODS),
        ood={"openbookqa": (*_SHIFTS, "mmlu_chem", "mmlu_phy")},
    ),
}


def bench_preset(name: str | None) -> BenchPreset | None:
    """Return a grid by its name.

    Args:
        name: One of ``BENCH_PRESETS``, or None.

    Returns:
        The grid; None for None.

    Raises:
        LaplaceLoRAError: There is none of that name.
    """
    if name is None:
        return None
    if name not in BENCH_PRESETS:
        raise LaplaceLoRAError(f"there is no grid {name!r}; {_choose(name, BENCH_PRESETS)}")
    return BENCH_PRESETS[name]
