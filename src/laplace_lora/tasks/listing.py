"""The table of tasks for a terminal."""

from laplace_lora.tasks.base import Task
from laplace_lora.tasks.table import TASKS


def task_table() -> str:
    """List all tasks.

    Returns:
        One line per task, and what the columns mean.
    """
    head = ("task", "K", "train", "validation", "test", "figures are of", "licence")
    lines = [head, *(_table_row(task) for task in TASKS.values())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = [
        "  ".join(
            cell.rjust(width) if 1 <= column <= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(
        [
            *texts,
            "",
            "Rows as on the hub; in brackets those with exactly K choices, which are used. -: none. *: hidden labels.",
            "Licences as the cards state them. Examples: laplace-lora tasks show NAME --tokenizer DIR.",
        ]
    )


def _table_row(task: Task) -> tuple[str, ...]:
    def size(split: str) -> str:
        if split not in task.sizes:
            return "-"
        kept = f" ({task.kept[split]})" if split in task.kept else ""
        return f"{task.sizes[split]}{kept}{'*' if split in task.hidden else ''}"

    return (
        task.name,
        str(task.choices),
        *(size(split) for split in ("train", "validation", "test")),
        task.evaluation,
        task.hub.licence,
    )
