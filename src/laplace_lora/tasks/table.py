"""All tasks by name."""

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.tasks import commonsense, glue, mmlu, topics
from laplace_lora.tasks.base import Task

TASKS: dict[str, Task] = {task.name: task for task in (*commonsense.TASKS, *mmlu.TASKS, *glue.TASKS, *topics.TASKS)}
_BY_ANY_NAME = {name: task for task in TASKS.values() for name in (task.name, *task.aliases)}


def is_task(name: str) -> bool:
    """Say whether a task has such a name.

    Args:
        name: A name in any spelling, such as ``ARC-Easy``.

    Returns:
        Whether it has.
    """
    return _plain(name) in _BY_ANY_NAME


def find_task(name: str) -> Task:
    """Return a task by its name.

    Args:
        name: In any spelling: ``ARC-Easy``, ``arc_easy``, ``arc-e``.

    Returns:
        The task.

    Raises:
        LaplaceLoRAError: There is none.
    """
    if not is_task(name):
        raise LaplaceLoRAError(f"there is no task {name!r}; choose {', '.join(TASKS)}.")
    return _BY_ANY_NAME[_plain(name)]


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")
