"""Tables of posteriors and predictions: Kronecker conventions, real data, the command line, ways of reading."""

import dataclasses
import json
from typing import Any

from laplace_lora.evaluation import DataSet, Line, lines_of, markdown_table
from laplace_lora.tasks import find_task
from laplace_lora.tasks.folder import official_split
from rendering.common import load, origin, session, table

FIGURES = ("accuracy", "nll", "ece", "ece_floor")


def data_set(task: str, n: int) -> DataSet:
    """Name the first n rows of a task's test file, as the benchmarks take them."""
    own = official_split(find_task(task), "test", n) is None
    return DataSet.of({"task": task, "split": "test", "own_split": own}, n)


def kfac_summary() -> str:
    """Mean ratios over all adapters, one row per convention."""
    document = load("kfac_conventions")
    results = document["results"]
    deltas = list(results[0]["ratios"])
    rows = []
    for name in results[0]["ratios"][deltas[0]]:
        row = [name]
        for key in ("over_blocks", "over_joint"):
            for delta in deltas:
                values = [result["ratios"][delta][name][key] for result in results]
                mean = sum(values) / len(values)
                row.append(f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})")
        rows.append(row)
    head = ["posterior"] + [f"over exact {kind}, δ={d}" for kind in ("blocks", "joint") for d in deltas]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def kfac_each() -> str:
    """One row per adapter: ratios to the exact blocks."""
    document = load("kfac_conventions")
    names = ("fitted", "reduce", "expand", "official scale", "diagonal", "prior alone")
    rows = []
    for result in document["results"]:
        for delta, ratios in result["ratios"].items():
            start = [
                result["task"],
                str(result["classes"]),
                str(result["epochs"]),
                f"{result['train_accuracy']:.2f}",
                delta,
            ]
            rows.append(start + [f"{ratios[name]['over_blocks']:.2f}" for name in names])
    return table(["task", "K", "epochs", "train accuracy", "δ", *names], rows)


def sst2() -> str:
    """MAP and Laplace on SST-2."""
    document = load("sst2")
    lines: list[Line] = []
    for result in document["results"]:
        data = data_set("sst2", result["test"])
        start = {
            "setting": result["setting"],
            "N": str(result["train"]),
            "seed": str(result["seed"]),
            "train accuracy": f"{result['train_accuracy']:.3f}",
        }
        runs = {name: value for name, value in result.items() if isinstance(value, dict)}
        lines += lines_of(data, next(iter(runs.values())), methods=["map"], more=start)
        for name, value in runs.items():
            more = start | {
                "prior precision": f"{value['prior_precision']:.3g}",
                "evidence check": "warned" if value["warned"] else "",
            }
            (line,) = lines_of(data, value, methods=["laplace"], more=more)
            lines.append(dataclasses.replace(line, method=name))
    columns = ("setting", "N", "seed", "train accuracy", "set", "n", "method", "prior precision", *FIGURES)
    return f"{markdown_table(lines, (*columns, 'evidence check'))}\n\nMade by {origin(document)}"


def sketch_ranks() -> str:
    """By rank: variances over those of whole factors, smallest and largest over adapters, and the warning's ratio."""
    document = load("sketch_ranks")
    results = document["results"]
    rows = []
    for kfac in dict.fromkeys(result["kfac"] for result in results):
        adapters = [result for result in results if result["kfac"] == kfac]
        for first in adapters[0]["rows"]:
            key = (first["delta"], first["factors"])
            found = [row for a in adapters for row in a["rows"] if (row["delta"], row["factors"]) == key]
            counts = [row["effective_parameters"] for row in found]
            warned = [c["with_tail"] / c["without_tail"] for c in counts]
            sizes = [row["bytes"] / a["whole_bytes"] for a, row in zip(adapters, found, strict=True)]
            rows.append(
                [
                    kfac,
                    f"{first['delta']:g}",
                    first["factors"],
                    _range([row["with_tail"]["mean"] for row in found]),
                    f"{min(r['with_tail']['lowest'] for r in found):.3f} to "
                    f"{max(r['with_tail']['highest'] for r in found):.3f}",
                    _range([row["tail_outside"]["mean"] for row in found]),
                    _range([row["without_tail"]["mean"] for row in found]),
                    _range(warned),
                    f"{sum(sizes) / len(sizes):.2f}",
                ]
            )
    head = [
        "K-FAC",
        "δ",
        "wide factors",
        "mean variance / whole factors'",
        "of single examples",
        "mean, tail outside alone",
        "mean, no tail",
        "effective parameters with / without tail",
        "bytes / whole factors'",
    ]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def joint_directions() -> str:
    """By rank: variances over the exact joint GGN's, mean over adapters, and the extremes of single examples."""
    document = load("joint_directions")
    results = document["results"]
    rows = []
    for first in results[0]["rows"]:
        key = (first["delta"], first["structure"], first["rank"])
        found = [row for a in results for row in a["rows"] if (row["delta"], row["structure"], row["rank"]) == key]
        singles = f"{min(row['lowest'] for row in found):.2f} to {max(row['highest'] for row in found):.2f}"
        means = [f"{row['mean']:.3f}" for row in found]
        rows.append([f"{first['delta']:g}", str(first["rank"] or ""), first["structure"], *means, singles])
    adapters = [f"{a['task']}, {a['epochs']} epochs" for a in results]
    rows.sort(key=lambda row: (float(row[0]), int(row[1] or 0)))
    head = ["δ", "directions", "posterior", *adapters, "of single examples"]
    counts = ", ".join(f"{a['ggn_rows']} ({name})" for name, a in zip(adapters, results, strict=True))
    return f"{table(head, rows)}\n\nRows of the GGN: {counts}.\n\nMade by {origin(document)}"


def _range(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def command_line() -> str:
    """The verbs on real data: every method, and the differences to the trained adapter."""
    document = load("command_line")
    lines: list[Line] = []
    for result in document["results"]:
        data = data_set(result["task"], result["n"])
        lines += lines_of(data, result, more={"training": result["training"]})
    columns = ("set", "training", "n", "method", *FIGURES, "auroc", "aurc", "difference")
    return f"{markdown_table(lines, columns)}\n\nMade by {origin(document)}"


def command_line_each() -> str:
    """The commands of every run and what they said."""
    return "\n\n".join(session(f"{r['task']}, {r['training']}", r) for r in load("command_line")["results"])


def breadth() -> str:
    """One row per way of reading and method."""
    document = load("breadth")
    lines: list[Line] = []
    for result in document["results"]:
        task, reading = result["case"].split(", ", 1)
        lines += lines_of(data_set(task, result["n"]), result, more={"read by": reading})
    columns = ("read by", "set", "n", "method", "accuracy", "nll", "ece", "rmse", "coverage_95")
    return markdown_table(lines, columns) + f"\n\nMade by {origin(document)}"


def breadth_each() -> str:
    """The commands of every way of reading, what they said, and a prediction."""
    parts = []
    for result in load("breadth")["results"]:
        prediction = json.dumps(_rounded(result["first_prediction"]), ensure_ascii=False)
        parts.append(session(result["case"], result, f"The first prediction: `{prediction}`. "))
    return "\n\n".join(parts)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
