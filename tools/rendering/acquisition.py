"""Tables of the experiment in active learning: what was labelled, and what it did for the test sentences."""

import math
from typing import Any

from rendering.common import load, origin, table

_SHOWN = ("accuracy", "nll")


def acquisition() -> str:
    """Every method against random choice, with intervals."""
    document = load("acquisition")
    head = ["labels", "chosen by", "positive", "accuracy", "less random's", "NLL", "less random's"]
    parts = []
    for case in document["results"]["cases"]:
        start = case["start"]
        first = str(document["results"]["settings"]["start"])
        rows = [[first, "the start", "", f"{start['accuracy']:.3f}", "", f"{start['nll']:.3f}", ""]]
        for entry in case["rounds"]:
            rows += [_row(entry, name, found) for name, found in entry["methods"].items()]
        settings = document["results"]["settings"]
        parts.append(f"{_heading(case, settings)}\n\n{table(head, rows)}\n\n{_batches(case, settings)}")
    return "\n\n".join(parts) + f"\n\nMade by {origin(document)}"


def acquisition_each() -> str:
    """Accuracy and NLL of every seed."""
    parts = []
    for case in load("acquisition")["results"]["cases"]:
        head = ["labels", "chosen by", *(f"seed {seed}" for seed in case["seeds"])]
        rows = []
        for entry in case["rounds"]:
            for name, found in entry["methods"].items():
                pairs = zip(*(found["by_seed"][figure] for figure in _SHOWN), strict=True)
                rows.append([str(entry["labels"]), _name(name), *(f"{a:.3f}, {b:.3f}" for a, b in pairs)])
        parts.append(table(head, rows))
    return "\n\n".join(parts)


def _heading(case: Any, settings: Any) -> str:
    seeds = len(case["seeds"])
    return (
        f"{case['case']} (own split), {seeds} seeds; {settings['start']} labels, then {settings['batch']} of a pool of "
        f"{settings['pool']}; {settings['test']} test sentences"
    )


def _batches(case: Any, settings: Any) -> str:
    least, most = min(case["information"]), max(case["information"])
    shared = case["shared_with_bald"]
    return (
        f"Of {settings['batch']} rows, BALD's first batch shares {shared['batch_bald']:.0f} with BatchBALD's and "
        f"{shared['entropy']:.0f} with entropy's, on average. By {settings['draws']:,} draws, which resolve "
        f"{math.log(settings['draws']):.1f} nats, BatchBALD's tell {least:.1f} to {most:.1f} nats."
    )


def _row(entry: Any, name: str, found: Any) -> list[str]:
    cells = [str(entry["labels"]), _name(name), f"{found['positive']:.2f}"]
    for figure in _SHOWN:
        cells.append(f"{found[figure]:.3f}")
        less = found.get("less_random", {}).get(figure)
        cells.append("" if less is None else f"{less['estimate']:+.3f} [{less['low']:+.3f}, {less['high']:+.3f}]")
    return cells


def _name(method: str) -> str:
    return {"bald": "BALD", "batch_bald": "BatchBALD"}.get(method, method)
