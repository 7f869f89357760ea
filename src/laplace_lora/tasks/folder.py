"""Rows from a folder of JSONL or CSV files, one folder per task and one file per split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laplace_lora.data import open_rows
from laplace_lora.errors import DataFileError
from laplace_lora.tasks.base import Task
from laplace_lora.tasks.hub import load_from_copy, load_from_hub, require_split
from laplace_lora.tasks.loaded import Found

_SUFFIXES = (".jsonl", ".ndjson", ".csv")


def load(task: Task, split: str, folder: Path | None) -> Found:
    """Find a split where the user says, or on the hub.

    Args:
        task: The task.
        split: ``train``, ``validation`` or ``test``.
        folder: Holds a folder per task with ``train.jsonl`` and so on, or copies of the hub's repositories; None for
            the hub itself.

    Returns:
        Its rows.

    Raises:
        DataFileError: There is no such split.
    """
    if folder is None:
        require_split(task, split)
        return load_from_hub(task, split)
    if not folder.is_dir():
        raise DataFileError(
            f"--data-dir {folder} is no folder; give one with a folder per task, or a copy of the hub's."
        )
    found = _load_files(task, split, folder) or load_from_copy(task, split, folder)
    if found is None:
        require_split(task, split)
        names = " or ".join(str(folder / name) for name in dict.fromkeys((task.name, task.hub.repository)))
        raise DataFileError(
            f"there is no {task.name}:{split} in {folder}; put {split}.jsonl or a copy of the hub's repository into "
            f"{names}, or leave out --data-dir."
        )
    return found


def official_split(task: Task, split: str, count: int) -> str | None:
    """Judge by the number of rows which of the hub's splits somebody's file is.

    Papers report on the validation split where the hub hides the labels of the test split, and many copies call it
    ``test``.

    Args:
        task: The task.
        split: What the file is called.
        count: Its rows, before any filter.

    Returns:
        The hub's split; None for a split of somebody's own.
    """
    names = [split, "validation"] if split == "test" and "test" in task.hidden else [split]
    return next((name for name in names if count == task.sizes.get(name)), None)


def _load_files(task: Task, split: str, folder: Path) -> Found | None:
    files = _files(task, folder)
    rows, official = _read(task, split, files)
    path, passed_over = files.get(split), ""
    if split == "validation" and official is None:
        # A file named test that has as many rows as the hub's validation split is that split.
        others, known = _read(task, "test", files)
        if known == split:
            passed_over = "" if path is None else str(path)
            path, rows, official = files["test"], others, known
    if path is None:
        return None
    if official not in (None, split):
        raise DataFileError(
            f"{path} has as many rows as the hub's {official} split, and the hub hides the labels of {split}: name it "
            f"{task.name}:{official}."
        )
    return Found([row for row in rows if task.belongs(row)], str(path), official, passed_over=passed_over)


def _read(task: Task, split: str, files: dict[str, Path]) -> tuple[list[Mapping[str, Any]], str | None]:
    """Read a file, once, and judge which of the hub's splits it is; no rows where there is no file."""
    if split not in files:
        return [], None
    rows: list[Mapping[str, Any]] = [row.fields for row in open_rows(files[split])]
    return rows, official_split(task, split, len(rows))


def _files(task: Task, folder: Path) -> dict[str, Path]:
    for name in task.folders:
        found = {
            split: path
            for split in ("train", "validation", "test")
            for suffix in _SUFFIXES
            if (path := folder / name / f"{split}{suffix}").is_file()
        }
        if found:
            return found
    return {}
