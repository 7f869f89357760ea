"""The page of ``laplace-lora bench``: its methods, the grid ``small``, and what published rows allow."""

import inspect
import math
import statistics
from typing import Any

from laplace_lora.bench.grids import markdown
from laplace_lora.bench.tables import cost_grid, metric_grids, outside_grids, shifted_grids
from laplace_lora.methods.table import METHODS
from laplace_lora.methods.temperature import HOTTEST
from rendering.common import load, origin, table

#: What Laplace's default has to beat, and what it is held against.
RIVALS = ("map", "mc_dropout", "checkpoint_ensemble", "llla")
#: LA as printed for Llama-3.1-8B in DALorRA (arXiv 2607.02182, table 1): NLL in nats by task, and its options there.
PRINTED = {
    "WG-S": (2, 0.56),
    "ARC-C": (5, 1.18),
    "ARC-E": (5, 1.04),
    "WG-M": (2, 0.51),
    "OBQA": (4, 0.94),
    "BoolQ": (2, 0.43),
}


def bench_methods() -> str:
    """All methods by name."""
    rows = []
    for method in METHODS.values():
        about = (inspect.getdoc(type(method)) or "").partition("\n\n")[0].replace("\n", " ")
        # Of a posterior's many settings, those that are not the defaults.
        chosen = method.config | {"tuner": method.tuner} if hasattr(method, "tuner") else method.settings()
        settings = ", ".join(f"{name} {value}" for name, value in chosen.items())
        wants = "held-out rows" if method.needs_held_out else ""
        if method.needs_others:
            wants = f"{method.needs_others} more adapters"
        if method.trains:
            wants = "a training of its own"
        rows.append([f"`{method.name}`", _plain(about), settings, wants])
    return table(["method", "what it is", "settings", "wants"], rows)


def bench_state() -> str:
    """What was measured."""
    lines = _lines()
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    seeds = sorted({line["seed"] for line in lines})
    training, document = lines[0]["training"], load("bench_small")
    train, test = ([line["rows"][kind] for line in lines] for kind in ("train", "test"))
    said = f"{max(train)} training rows ({min(train)} where methods choose on the rest), {_range(test)} test rows"
    return (
        f"{len(lines)} results: {', '.join(tasks)}; seeds {', '.join(map(str, seeds))}; {said}. LoRA rank "
        f"{training['rank']}, dropout {training['dropout']}, {training['epochs']} epochs of batches of "
        f"{training['batch_size']}, AdamW at {training['learning_rate']}. "
        f"{document['results']['hours']:.1f} hours on the clock; {document['results']['hours_with_short_breaks']:.1f} "
        f"with breaks of 20 to 30 minutes between sittings.\n\nMade by {origin(document)}"
    )


def bench_tables() -> str:
    """Every metric, method and task."""
    return "\n\n".join(f"**{grid.title}**\n\n{markdown(grid)}" for grid in metric_grids(_lines()))


def bench_outside() -> str:
    """Other data told apart."""
    return "\n\n".join(f"**{grid.title}**\n\n{markdown(grid)}" for grid in outside_grids(_lines()))


def bench_shifted() -> str:
    """Figures on other data whose labels fit."""
    return "\n\n".join(f"**{grid.title}**\n\n{markdown(grid)}" for grid in shifted_grids(_lines()))


def bench_costs() -> str:
    """What methods cost."""
    grid = cost_grid(_lines())
    return f"**{grid.title}**\n\n{markdown(grid)}"


def bench_verdict() -> str:
    """Laplace's default less every rival, paired by task and seed."""
    lines = {(line["task"], line["seed"], line["method"]): line for line in _lines()}
    tasks = list(dict.fromkeys(task for task, _, _ in lines))
    rows = []
    for rival in (*RIVALS, "temperature", "deep_ensemble", "swag", "blob", "tfb"):
        for metric in ("nll", "ece"):
            gaps = {
                task: [
                    line["figures"][metric] - lines[task, seed, rival]["figures"][metric]
                    for (of, seed, method), line in lines.items()
                    if of == task and method == "laplace" and (task, seed, rival) in lines
                ]
                for task in tasks
            }
            every = [gap for found in gaps.values() for gap in found]
            if every:
                cells = [_with_error(found) if found else "" for found in gaps.values()]
                better = f"{sum(gap < 0.0 for gap in every)} of {len(every)}"
                # Seeds of a task share its test rows: tasks are what is independent.
                overall = _with_error([statistics.fmean(found) for found in gaps.values() if found])
                rows.append([METHODS[rival].title, metric.upper(), overall, better, *cells])
    return table(["LA (default) less", "", "mean of tasks", "pairs where less", *tasks], rows)


def bench_bounds() -> str:
    """Searches that ended at their bounds."""
    found = {
        "Temperatures at their bound of 100, where held-out labels do not follow the logits at all": [
            line for line in _lines() if line["found"].get("temperature") == HOTTEST and line["method"] == "temperature"
        ],
        "Searches of TFB without any noise within tolerance, whose smallest was taken": [
            line for line in _lines() if line["found"].get("within") is False
        ],
    }
    named = {what: [f"{line['task']} (seed {line['seed']})" for line in of] for what, of in found.items()}
    return "\n".join(f"- {what}: {', '.join(of) or 'none'}." for what, of in named.items())


def bench_share() -> str:
    """What Laplace's default costs beside the deep ensemble, stage by stage."""
    lines = {(line["task"], line["seed"], line["method"]): line for line in _lines()}
    shares: dict[str, list[list[float]]] = {}
    for (task, seed, method), line in lines.items():
        other = lines.get((task, seed, "deep_ensemble"))
        if method == "laplace" and other is not None:
            spent, all_theirs = line["cost"]["forward_passes"], sum(other["cost"]["forward_passes"].values())
            found = [spent["train"], spent["fit"] + spent["tune"], spent["predict"], sum(spent.values())]
            shares.setdefault(task, []).append([passes / all_theirs for passes in found])
    shares["all"] = [found for of_task in list(shares.values()) for found in of_task]
    rows = [
        [task, *(f"{statistics.fmean(stage):.2f}" for stage in zip(*found, strict=True))]
        for task, found in shares.items()
    ]
    return table(["of the deep ensemble's cost", "training", "fit and tuning", "prediction", "together"], rows)


def bench_twice() -> str:
    """The bands that a second soft-max allows, and where published rows lie."""
    rows = []
    for task, (options, printed) in PRINTED.items():
        least = math.log(1.0 + (options - 1) / math.e)
        accuracy = 1.0 - (printed - least)
        rows.append([task, str(options), f"{least:.3f} to {least + 1.0:.3f}", f"{printed:.2f}", f"{accuracy:.2f}"])
    head = ["task", "K", "NLL that a second soft-max allows", "NLL of LA as printed", "accuracy, were all sure"]
    return table(head, rows)


def bench_twice_measured() -> str:
    """The error on purpose beside what it was made from, task by task."""
    nll: dict[str, dict[str, list[float]]] = {}
    for line in _lines():
        if line["method"] in ("laplace_official", "softmax_twice"):
            nll.setdefault(line["task"], {}).setdefault(line["method"], []).append(line["figures"]["nll"])
    rows = [
        [task, *(f"{statistics.fmean(found[name]):.3f}" for name in ("laplace_official", "softmax_twice"))]
        for task, found in nll.items()
    ]
    return table(["task", "NLL of LA (official K-FAC)", "soft-maxed a second time"], rows)


def _lines() -> list[dict[str, Any]]:
    found = load("bench_small")["results"]["small"]
    return [line | found["shared"] for line in found["lines"]]


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _with_error(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):+.3f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def _plain(text: str) -> str:
    """Write the roles of docstrings as code."""
    return text.replace(":class:", "").replace("``", "`").replace("|", "\\|")
