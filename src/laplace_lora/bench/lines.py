"""results.jsonl: one line per result, with every setting and version; in the order of the grid, whoever made it."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from laplace_lora.bench.judging import LAST, Cell
from laplace_lora.bench.settings import BenchConfig
from laplace_lora.bench.store import Store
from laplace_lora.commands.output import whole_file

RESULTS_NAME = "results.jsonl"
#: What differs from run to run: times, and memory, which depends on what ran before.
COSTS = "cost"


def line_of(cell: Cell, folder: Path, config: BenchConfig) -> dict[str, Any]:
    """Return the line of a result.

    Args:
        cell: Which.
        folder: Its entry in the cache.
        config: Settings.

    Returns:
        JSON values. ``cost`` holds seconds by stage, the same in forward passes of one row, and bytes.
    """
    entry = Store.entry(folder)
    made_from = entry["made_from"]
    adapter = made_from["adapter"]
    return {
        "base": config.base,
        "task": cell.task,
        "seed": cell.seed,
        "checkpoint": cell.checkpoint,
        "step": cell.step,
        "total_steps": entry["total_steps"],
        "method": cell.method.name,
        "title": cell.method.title,
        "settings": made_from["settings"],
        "rows": entry["rows"],
        "own_split": entry["own_split"],
        "cut": entry["cut"],
        "figures": entry["figures"],
        "ood": entry["ood"],
        "found": entry["found"],
        "warnings": entry["warnings"],
        "stored_bytes": entry["stored_bytes"],
        "training": adapter["settings"],
        "protocol": {key: adapter[key] for key in ("max_length", "prompts", "readout", "padding_side", "quantization")}
        | {key: made_from[key] for key in ("batch_size", "dtype")}
        | {"device": made_from.get("device", "cpu"), "held_out": config.held_out, "revision": config.revision},
        "versions": made_from["versions"],
        "key": folder.name,
        COSTS: cost_of(entry, 1.0 if cell.step is None else cell.step / entry["total_steps"]),
    }


def cost_of(entry: dict[str, Any], trained: float = 1.0) -> dict[str, Any]:
    """Return what a result took.

    Training, fit and tuning are counted once, prediction for the test rows. A forward pass is that of the trained
    adapter's logits of one row, timed in the same process just before; of a training, just after it.

    Args:
        entry: Of the cache.
        trained: Share of its steps that the training had done: a checkpoint costs what led to it.

    Returns:
        ``seconds`` by stage, ``forward_passes`` (the same in forward passes of one row), ``predict_per_row`` (forward
        passes per row) and ``peak_memory_bytes``.
    """
    kept = ("seconds", "forward_passes", "forward_seconds_per_row", "peak_memory_bytes", "machine")
    found = {name: entry[name] for name in kept}
    for unit in ("seconds", "forward_passes"):
        found[unit] = entry[unit] | {"train": trained * entry[unit]["train"]}
    return found | {"predict_per_row": entry["forward_passes"]["predict"] / entry["rows"]["test"]}


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write results, whole or not at all.

    Args:
        path: Where to.
        lines: In order.
    """
    with whole_file(path) as staged, staged.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read results.

    Args:
        path: From :func:`write_lines`.

    Returns:
        The lines.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def kind_of_warning(message: str) -> str:
    """Return what is the same in warnings that differ in their numbers alone.

    Args:
        message: One of a line's ``warnings``.

    Returns:
        The message without numbers.
    """
    return re.sub(r"\d[\d.,]*(e[+-]?\d+)?", "", message)


def at_the_end(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose what was measured at the end of trainings.

    Args:
        lines: All.

    Returns:
        Those.
    """
    return [line for line in lines if line["checkpoint"] == LAST]
