"""Tables of posteriors and predictions: Kronecker conventions, real data, the command line, ways of reading."""

import json
from typing import Any

from rendering.common import cell, interval, load, origin, score_cells, table


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
    rows = []
    for result in document["results"]:
        start = [result["setting"], str(result["train"]), str(result["seed"]), f"{result['train_accuracy']:.3f}"]
        first = True
        for key, value in result.items():
            if not isinstance(value, dict):
                continue
            if first:
                scores = value["methods"]["map"]
                rows.append([*start, "MAP", "", *score_cells(scores), ""])
                first = False
            scores = value["methods"]["laplace"]
            warned = "warned" if value["warned"] else ""
            rows.append(["", "", "", "", key, f"{value['prior_precision']:.3g}", *score_cells(scores), warned])
    head = [
        "setting",
        "N",
        "seed",
        "train accuracy",
        "method",
        "prior precision",
        "accuracy",
        "NLL",
        "ECE",
        "ECE floor",
        "evidence check",
    ]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


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


def _range(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def command_line() -> str:
    """The verbs on real data: every method, and the differences to the trained adapter."""
    document = load("command_line")
    rows = []
    for result in document["results"]:
        start = [result["task"], result["training"], str(result["n"])]
        for method, scores in result["methods"].items():
            change = result["differences"].get(method, {}).get("nll")
            rows.append(
                [
                    *(start if method == "map" else ["", "", ""]),
                    {"map": "MAP", "temperature": "temperature", "laplace": "Laplace"}[method],
                    *score_cells(scores),
                    cell(scores["auroc"]),
                    f"{scores['aurc']:.3f}",
                    "" if change is None else interval(change),
                ]
            )
    head = ["task", "training", "n", "method", "accuracy", "NLL", "ECE", "ECE floor", "AUROC", "AURC", "NLL less MAP's"]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def command_line_each() -> str:
    """The commands of every run and what they said."""
    return "\n\n".join(_session(f"{r['task']}, {r['training']}", r) for r in load("command_line")["results"])


def _session(heading: str, result: Any, more: str = "") -> str:
    """The commands of one run, what they said, and how long they took."""
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result["seconds"].items())
    said = "\n>\n".join(f"> {message['event']}: {message['message']}" for message in result["messages"])
    commands = "\n".join(f"    {command}" for command in result["commands"])
    return f"### {heading}\n\n{commands}\n\n{said}\n\n{more}Took {seconds}."


def breadth() -> str:
    """One row per way of reading and method."""
    document = load("breadth")
    rows = []
    for result in document["results"]:
        start = [result["case"], str(result["n"])]
        for name, scores in result["methods"].items():
            rows.append(
                [
                    *start,
                    {"map": "MAP", "laplace": "Laplace"}[name],
                    *(_figure(scores, metric) for metric in ("accuracy", "nll", "ece", "rmse", "coverage_95")),
                ]
            )
            start = ["", ""]
    head = ["case", "n", "method", "accuracy", "NLL", "ECE", "RMSE", "in the 95 % interval"]
    return table(head, rows) + f"\n\nMade by {origin(document)}"


def breadth_each() -> str:
    """The commands of every way of reading, what they said, and a prediction."""
    parts = []
    for result in load("breadth")["results"]:
        prediction = json.dumps(_rounded(result["first_prediction"]), ensure_ascii=False)
        parts.append(_session(result["case"], result, f"The first prediction: `{prediction}`. "))
    return "\n\n".join(parts)


def _figure(scores: Any, metric: str) -> str:
    value = scores.get(metric)
    return "" if value is None else f"{value:.3f}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
