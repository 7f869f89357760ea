"""What somebody names as data: a file, or a split of a task."""

import os
from pathlib import Path

from laplace_lora.data import Source
from laplace_lora.errors import DataFileError, advice_on
from laplace_lora.presets import Preset
from laplace_lora.tasks import PROMPTS, TASKS, TaskSplit, find_task, is_task

#: Stands for the split that a task's figures are measured on.
EVALUATION = "evaluation"


def open_source(text: str, default: str | None, data_dir: Path | None = None, prompts: str | None = None) -> Source:
    """Find out what is meant.

    Args:
        text: A file, or a task with or without a split: ``openbookqa``, ``openbookqa:validation``,
            ``openbookqa:train[:80%]``. Where there is a file of that name, it is meant.
        default: Split of a task that is named without one: ``train``, :data:`EVALUATION`; None where it must be
            said.
        data_dir: Holds copies of tasks; None for the hub.
        prompts: Whose prompts a language model is asked; the paper's if None.

    Returns:
        The file, or the rows of the task.

    Raises:
        DataFileError: A split must be said, or an option belongs to tasks and this is none.
    """
    name, _, split = text.partition(":")
    if not names_task(text):
        _refuse_for_files(text, data_dir, prompts)
        return Path(text)
    task = find_task(name)
    if not split:
        split = task.evaluation if default == EVALUATION else default or ""
    if not split:
        raise DataFileError(
            f"say which rows of {task.name} are held out: {task.name}:validation, or {task.name}:train[80%:] beside "
            f"{task.name}:train[:80%] for training."
        )
    return TaskSplit(task, split, data_dir, prompts)


def _refuse_for_files(text: str, data_dir: Path | None, prompts: str | None) -> None:
    if prompts is not None and prompts not in PROMPTS:
        raise DataFileError(f"prompts {prompts!r} are not known; choose {', '.join(PROMPTS)}, or give --template.")
    if not os.path.exists(text) and "." not in os.path.basename(text) and os.sep not in text:
        advice = "check the path, or see laplace-lora tasks for the names."
        meant = advice_on(text.partition(":")[0].lower(), TASKS, advice)
        raise DataFileError(f"{text} is neither a file nor a task: {meant}")
    if prompts is not None:
        raise DataFileError(f"--prompts belongs to tasks, and {text} is a file; give --template.")
    if data_dir is not None and not os.path.exists(text):
        raise DataFileError(f"{text} is no task, and there is no such file; check the path.")


def prompts_of(
    said: str | None, preset: Preset | None, data: str, template: str | None, readout: str | None
) -> str | None:
    """Say whose prompts are used: those that are named, or else a preset's where there is room for them.

    Args:
        said: Whose prompts somebody names.
        preset: The preset, or None.
        data: What somebody names as data; a file has no prompts.
        template: A template in the place of prompts.
        readout: How outputs are read; None where the model and the task decide.

    Returns:
        Whose; None for nobody's in particular.
    """
    if said is not None or preset is None or template is not None or readout not in (None, "answers"):
        return said
    return preset.prompts if names_task(data) else None


def names_task(text: str) -> bool:
    """Say whether a task is meant.

    Args:
        text: What somebody names as data.

    Returns:
        False for a file.
    """
    return is_task(text.partition(":")[0]) and not os.path.isfile(text)  # a folder of that name holds its files
