"""Data sets and prompts: what the experiments and the demo are run on."""

from laplace_lora.tasks.ambiguous_reviews import LABEL_NAMES, Review, make_reviews, make_splits
from laplace_lora.tasks.base import Hub, Task
from laplace_lora.tasks.prompts import PROMPTS
from laplace_lora.tasks.split import TaskSplit
from laplace_lora.tasks.table import TASKS, find_task, is_task

__all__ = [
    "LABEL_NAMES",
    "PROMPTS",
    "TASKS",
    "Hub",
    "Review",
    "Task",
    "TaskSplit",
    "find_task",
    "is_task",
    "make_reviews",
    "make_splits",
]
