"""Draw docs/images/bench.png and bench_along.png from what bench_small.py measured."""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from common import RESULTS

from laplace_lora.bench.tables import ERRORS

PICTURES = Path(__file__).parent.parent / "docs" / "images"
#: Colours of Okabe and Ito, told apart by the colour-blind, and markers that differ too: one per task.
TASKS = [
    ("#0072b2", "o"),
    ("#e69f00", "s"),
    ("#d55e00", "D"),
    ("#009e73", "^"),
    ("#cc79a7", "v"),
    ("#56b4e9", "P"),
]
METHOD_COLOURS = {"map": "#777777", "laplace": "#0072b2", "laplace_evidence": "#d55e00"}
Line = dict[str, Any]


def main() -> None:
    """Draw both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    found = json.loads((RESULTS / "bench_small.json").read_text(encoding="utf-8"))["results"]
    PICTURES.mkdir(parents=True, exist_ok=True)
    compared(found["small"]["lines"], PICTURES / "bench.png")
    if "along" in found:
        along(found["along"]["lines"], PICTURES / "bench_along.png")


def compared(lines: list[Line], path: Path) -> None:
    """Draw every method's NLL and ECE less MAP's, and its cost, task by task."""
    plt = _pyplot()
    lines = [line for line in lines if line["method"] not in ERRORS]
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    titles = {line["method"]: line["title"] for line in lines if line["method"] != "map"}
    panels = [
        ("NLL less MAP's (nats)", lambda line, trained: line["figures"]["nll"] - trained["figures"]["nll"]),
        ("ECE less MAP's", lambda line, trained: line["figures"]["ece"] - trained["figures"]["ece"]),
        ("cost over MAP's", lambda line, trained: _cost(line) / _cost(trained)),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(11, 0.38 * len(titles) + 1.6), sharey=True, layout="constrained")
    trained = {(line["task"], line["seed"]): line for line in lines if line["method"] == "map"}
    for axis, (title, measure) in zip(axes, panels, strict=True):
        for row, method in enumerate(titles):
            for task, (colour, marker) in zip(tasks, TASKS, strict=False):
                values = [
                    measure(line, trained[task, line["seed"]])
                    for line in lines
                    if line["method"] == method and line["task"] == task
                ]
                if values:
                    mean = statistics.fmean(values)
                    axis.plot(values, [row] * len(values), marker, color=colour, ms=3, alpha=0.4, mew=0)
                    axis.plot([mean], [row], marker, color=colour, ms=7, mec="white", mew=0.6)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", color="#dddddd", lw=0.7)
        axis.set_axisbelow(True)
        axis.axvline(1.0 if "cost" in title else 0.0, color="#333333", lw=0.8)
    axes[2].set_xscale("log")
    axes[2].xaxis.set_major_locator(plt.FixedLocator([1, 2, 3, 5, 10, 20]))
    axes[2].xaxis.set_major_formatter("{x:g}")
    axes[2].xaxis.set_minor_locator(plt.NullLocator())
    axes[0].set_yticks(range(len(titles)), list(titles.values()), fontsize=9)
    axes[0].invert_yaxis()
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, ls="", ms=7, mec="white", label=task)
        for task, (colour, marker) in zip(tasks, TASKS, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(tasks), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def along(lines: list[Line], path: Path) -> None:
    """Draw accuracy, NLL and ECE against the steps of training: mean and range over seeds."""
    plt = _pyplot()
    tasks = list(dict.fromkeys(line["task"] for line in lines))
    figure, axes = plt.subplots(len(tasks), 3, figsize=(10, 2.6 * len(tasks)), squeeze=False, layout="constrained")
    for row, task in zip(axes, tasks, strict=True):
        for axis, metric in zip(row, ("accuracy", "nll", "ece"), strict=True):
            for method, colour in METHOD_COLOURS.items():
                points: dict[int, list[float]] = {}
                for line in lines:
                    if line["task"] == task and line["method"] == method:
                        step = line["total_steps"] if line["step"] is None else line["step"]
                        points.setdefault(step, []).append(line["figures"][metric])
                steps = sorted(points)
                title = next(line["title"] for line in lines if line["method"] == method)
                axis.plot(steps, [statistics.fmean(points[s]) for s in steps], "o-", color=colour, ms=3, label=title)
                low, high = [min(points[s]) for s in steps], [max(points[s]) for s in steps]
                axis.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
            axis.set_title(f"{task}: {metric if metric == 'accuracy' else metric.upper()}", fontsize=10)
            axis.set_xlabel("steps of training", fontsize=9)
            axis.grid(color="#e5e5e5", lw=0.7)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _cost(line: Line) -> float:
    return float(sum(line["cost"]["forward_passes"].values()))


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


if __name__ == "__main__":
    main()
