"""Rows from the Hugging Face hub, at the revision that the table names, and from copies of its repositories."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from laplace_lora.errors import DataFileError, MissingExtraError, first_line
from laplace_lora.tasks.base import Task
from laplace_lora.tasks.loaded import Found


def require_datasets() -> Any:
    """Import the library that reads the hub's formats.

    Returns:
        The module.

    Raises:
        MissingExtraError: It is not installed.
    """
    if find_spec("datasets") is None:
        raise MissingExtraError(
            "tasks from the hub need datasets; run: pip install 'laplace-lora[datasets]', or give --data-dir a folder "
            "of JSONL files."
        )
    import datasets  # takes a second, and only tasks need it

    return datasets


def load_from_hub(task: Task, split: str) -> Found:
    """Download a split, or take it from the cache of ``datasets``.

    Args:
        task: The task.
        split: ``train``, ``validation`` or ``test``, one that the task has.

    Returns:
        Its rows, all configurations one after the other.

    Raises:
        DataFileError: It cannot be had, or has another number of rows than the table says.
    """
    datasets = require_datasets()
    hub, rows = task.hub, []
    for configuration in hub.configurations:
        try:
            with _quiet(datasets):
                part = datasets.load_dataset(
                    hub.repository, configuration, split=hub.splits[split], revision=hub.revision
                )
            rows += list(part)
        except Exception as error:  # of datasets, the hub and the network
            raise DataFileError(
                f"{task.name} cannot be loaded from the hub ({hub.repository}, {configuration}: {first_line(error)}); "
                "check the network, or give --data-dir a folder with a copy."
            ) from error
    if len(rows) != task.sizes.get(split, len(rows)):
        raise DataFileError(
            f"{task.name}:{split} has {len(rows)} rows on the hub, and {task.sizes[split]} are known of; give "
            "--data-dir a folder with a copy of the right ones."
        )
    return Found(rows, f"the hub, {hub.shown}", split, counted=False)


def require_split(task: Task, split: str) -> None:
    """Refuse a split that the hub does not have.

    Args:
        task: The task.
        split: ``train``, ``validation`` or ``test``.

    Raises:
        DataFileError: There is none.
    """
    if split not in task.hub.splits:
        raise DataFileError(
            f"{task.name} has no {split} split on the hub; choose {', '.join(task.hub.splits)}, or a part of one: "
            f"{task.name}:train[80%:]."
        )


def load_from_copy(task: Task, split: str, folder: Path) -> Found | None:
    """Read a split from a copy of the hub's repository, or from what ``save_to_disk`` wrote.

    Args:
        task: The task.
        split: ``train``, ``validation`` or ``test``.
        folder: Holds copies.

    Returns:
        Its rows; None where there is no copy.

    Raises:
        DataFileError: There is a copy that cannot be read.
    """
    copy = _copy_of(task, folder)
    if copy is None:
        return None
    require_split(task, split)
    datasets = require_datasets()
    theirs = task.hub.splits[split]
    try:
        read = _saved if _is_saved(copy) else _repository
        rows = [row for row in read(datasets, task, copy, theirs) if task.belongs(row)]
    except Exception as error:  # of datasets
        raise DataFileError(
            f"{task.name}:{split} cannot be read from {copy} ({first_line(error)}); it should be a copy of "
            f"{task.hub.repository} as the hub has it."
        ) from error
    official = split if len(rows) == task.sizes.get(split) else None
    return Found(rows, f"a copy of {task.hub.repository} in {copy}", official)


def _copy_of(task: Task, folder: Path) -> Path | None:
    owner, _, name = task.hub.repository.rpartition("/")
    cached = folder / f"datasets--{owner}--{name}" / "snapshots" / task.hub.revision
    places = (*task.folders, task.hub.repository, f"{owner}--{name}", name)
    for place in (cached, *(folder / place for place in places)):
        if place.is_dir() and any(_is_saved(place) or any(place.rglob(f"*{end}")) for end in _FORMATS):
            return place
    return None


#: Formats of the hub's own repositories; JSONL alone is a folder of ours.
_FORMATS = (".parquet", ".arrow", "dataset_dict.json")


def _is_saved(place: Path) -> bool:
    return (place / "dataset_dict.json").exists()


def _saved(datasets: Any, task: Task, copy: Path, split: str) -> list[Mapping[str, Any]]:
    found = datasets.load_from_disk(str(copy))[split]
    configuration = found.info.config_name
    if copy.name not in task.folders and task.shares_repository and configuration not in task.hub.configurations:
        raise ValueError(f"it does not say that it is {task.hub.configurations[0]}: name its folder {task.name}")
    return list(found)


def _repository(datasets: Any, task: Task, copy: Path, split: str) -> list[Mapping[str, Any]]:
    """Read all configurations; streamed, so that nothing is written to a cache."""
    rows: list[Mapping[str, Any]] = []
    known = datasets.get_dataset_config_names(str(copy))
    for configuration in task.hub.configurations:
        chosen: dict[str, str] = {}
        if configuration in known:
            chosen = {"name": configuration}
        elif (copy / configuration).is_dir():  # a copy without the card, which names the configurations
            chosen = {"data_dir": configuration}
        elif len(known) > 1 or (task.shares_repository and copy.name not in task.folders):
            raise ValueError(f"there is no configuration {configuration}")
        rows += list(datasets.load_dataset(str(copy), split=split, streaming=True, **chosen))
    return rows


class _quiet:
    """No progress bars of datasets' own."""

    def __init__(self, datasets: Any) -> None:
        self.datasets, self.were_on = datasets, False

    def __enter__(self) -> None:
        self.were_on = not self.datasets.utils.are_progress_bars_disabled()
        self.datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        if self.were_on:
            self.datasets.enable_progress_bars()
