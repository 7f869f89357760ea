"""Draw docs/images/growth.png from what growth.py measured; also the slopes, which growth.py stores and prints.

A slope is the least-squares one of log(measure) against log(parameter) over the upper decade, from a tenth of the
largest value measured: below it, what does not grow hides what does. The same part of each panel is shaded.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from common import RESULTS

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "growth.png"
PARAMETERS = {
    "N": "N, training examples",
    "T": "T, tokens per example",
    "K": "K, classes",
    "r": "r, LoRA rank",
    "d": "d, hidden width",
    "L": "L, layers",
}
Slopes = dict[str, dict[str, dict[str, Any]]]
#: Colours of Okabe and Ito, told apart by the colour-blind; markers differ too. A line is drawn alike wherever it is.
BLUE, ORANGE, RED, GREEN, PURPLE = "#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7"
DARK, GREY, SHADE = "#333333", "#777777", "#f0f3f7"
LINES = {
    "fit": ("fit, exact Fisher", BLUE, "o", "-"),
    "one pass": ("fit, one-pass Fisher", ORANGE, "s", "-"),
    "predict": ("predict", RED, "D", "-"),
    "stored": ("the default posterior", DARK, "o", "-"),
    "exact fit": ("structure exact: fit", GREEN, "^", "-"),
    "exact predict": ("structure exact: predict", GREEN, "v", ":"),
    "exact first": ("structure exact: the first predict", DARK, "v", ":"),
    "full fit": ("whole factors: fit", PURPLE, "P", "-"),
    "full predict": ("whole factors: predict", PURPLE, "X", ":"),
    "passes": ("the model's own passes, 1 F + (K-1) B", GREY, "", "--"),
    "step": ("the model's own passes, 1 F + 1 B", GREY, "", ":"),
}
#: Rows of panels: label of the axis, divisor of the unit, and line to measure.
ROWS: list[tuple[str, float, dict[str, str]]] = [
    (
        "fit of N examples, s",
        1.0,
        {
            "passes": "kron: seconds passes_of_fit",
            "step": "kron: seconds passes_of_fit_one_pass",
            "fit": "kron: seconds fit",
            "one pass": "kron: seconds fit_one_pass",
            "exact fit": "exact: seconds fit",
            "full fit": "kron_full: seconds fit",
        },
    ),
    (
        "predict of a batch, s",
        1.0,
        {
            "passes": "kron: seconds passes",
            "predict": "kron: seconds predict",
            "exact predict": "exact: seconds predict",
            "exact first": "exact: first_predict_seconds",
            "full predict": "kron_full: seconds predict",
        },
    ),
    (
        "peak memory, MiB",
        2**20,
        {
            "passes": "kron: peak_bytes passes",
            "fit": "kron: peak_bytes fit",
            "one pass": "kron: peak_bytes fit_one_pass",
            "predict": "kron: peak_bytes predict",
            "exact fit": "exact: peak_bytes fit",
            "exact predict": "exact: peak_bytes predict",
            "full fit": "kron_full: peak_bytes fit",
        },
    ),
    (
        "stored posterior, MiB",
        2**20,
        {"stored": "kron: stored_bytes", "exact fit": "exact: stored_bytes", "full fit": "kron_full: stored_bytes"},
    ),
]


def lines_of(points: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Sort what was measured into lines, by series and measure, and parameter; each in order of the parameter."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for point in points:
        measures = {f"{kind} {name}": y for kind in ("seconds", "peak_bytes") for name, y in point[kind].items()}
        measures |= {name: point[name] for name in ("stored_bytes", "first_predict_seconds") if name in point}
        for name, y in measures.items():
            if y > 0:  # a peak below a page has no logarithm
                lines.setdefault((f"{point['series']}: {name}", point["parameter"]), []).append((point["value"], y))
    return {key: sorted(line) for key, line in lines.items()}


def slopes(points: list[dict[str, Any]]) -> Slopes:
    """Fit every line's upper decade; a line with fewer than two points there has no slope."""
    found: Slopes = {}
    for (name, parameter), line in lines_of(points).items():
        upper = [(x, y) for x, y in line if x >= line[-1][0] / 10]
        if len(upper) > 1:
            logs = [(math.log(x), math.log(y)) for x, y in upper]
            slope = statistics.linear_regression(*zip(*logs, strict=True)).slope
            where = {"from": upper[0][0], "to": upper[-1][0], "points": len(upper)}
            found.setdefault(name, {})[parameter] = {"slope": slope, **where}
    return found


def table(points: list[dict[str, Any]]) -> str:
    """Lay the slopes out, a parameter per column, and name what was skipped."""
    found = slopes(points)
    lines = [f"{'slope over the upper decade':42}" + "".join(f"{name:>7}" for name in PARAMETERS)]
    for name in sorted(found):
        cells = [f"{found[name][key]['slope']:7.2f}" if key in found[name] else " " * 7 for key in PARAMETERS]
        lines.append(f"{name:42}" + "".join(cells))
    for point in points:
        for name, reason in point.get("skipped", {}).items():
            lines.append(f"skipped: {point['series']}, {point['parameter']} = {point['value']}, {name}: {reason}")
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw one column of panels per parameter and write the PNG."""
    # Figure and canvas are used directly: pyplot would open a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines, found = lines_of(results["points"]), slopes(results["points"])
    figure = Figure(figsize=(11.0, 10.0), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(ROWS), len(PARAMETERS), sharex="col", sharey="row", squeeze=False)
    seen: set[str] = set()
    for row, (label, unit, measures) in zip(grid, ROWS, strict=True):
        for axes, parameter in zip(row, PARAMETERS, strict=True):
            axes.set(xscale="log", yscale="log")
            drawn = {kind: lines[name, parameter] for kind, name in measures.items() if (name, parameter) in lines}
            for kind, points in drawn.items():
                axes.plot(*zip(*[(x, y / unit) for x, y in points], strict=True), **_style(kind))
            seen |= set(drawn)
            _mark(axes, parameter, results["base"][parameter], [x for points in drawn.values() for x, _ in points])
            numbers = {kind: found[measures[kind]].get(parameter) for kind in drawn if measures[kind] in found}
            _write_slopes(axes, {kind: number["slope"] for kind, number in numbers.items() if number})
        row[0].set_ylabel(label, fontsize=11)
        low, high = row[0].get_ylim()
        row[0].set_ylim(low, high * (high / low) ** 0.38)  # room for the slopes
    for top, bottom, name in zip(grid[0], grid[-1], PARAMETERS.values(), strict=True):
        top.set_title(name.split(",")[0], fontsize=12, fontweight="bold")
        bottom.set_xlabel(name, fontsize=11)
    handles: list[Any] = [Line2D([], [], label=LINES[kind][0], **_style(kind)) for kind in LINES if kind in seen]
    handles += [
        Line2D([], [], color=DARK, linewidth=0.8, label="the base point"),
        Line2D([], [], color=ORANGE, linewidth=0.8, label="above it fisher='auto' is one-pass"),
        Patch(color=SHADE, label="where the slopes (numbers) are fitted"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=10, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, format="png", metadata={"Software": None})


def _style(kind: str) -> dict[str, Any]:
    """Return how a line is drawn."""
    _, colour, marker, dashes = LINES[kind]
    # The model's own passes lie on top, or a line close by would hide them.
    return {
        "color": colour,
        "marker": marker,
        "linestyle": dashes,
        "linewidth": 1.5,
        "markersize": 4.5,
        "zorder": 2.0 if marker else 3.0,
    }


def _mark(axes: Any, parameter: str, base: float, values: list[float]) -> None:
    """Shade the decade of the slopes, and draw the base point and where fisher='auto' changes."""
    axes.tick_params(labelsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvline(base, ymax=0.78, color=DARK, linewidth=0.8, zorder=1)  # the slopes are above
    if values:
        axes.axvspan(max(values) / 10, max(values), color=SHADE, zorder=0)
    if parameter == "K":
        axes.axvline(16, ymax=0.78, color=ORANGE, linewidth=0.8, zorder=1)


def _write_slopes(axes: Any, numbers: dict[str, float]) -> None:
    """Write the slopes in the colours of their lines, three to a line of text."""
    for place, (kind, slope) in enumerate(numbers.items()):
        across, down = place % 3, place // 3
        axes.text(
            0.04 + 0.33 * across,
            0.99 - 0.11 * down,
            f"{round(slope, 2) + 0.0:.2f}",  # never -0.00
            color=LINES[kind][1],
            fontsize=9.5,
            fontweight="normal" if LINES[kind][3] != "-" else "bold",
            transform=axes.transAxes,
            verticalalignment="top",
        )


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "growth.json", help="what growth.py wrote")
    parser.add_argument("--out", type=Path, default=PICTURE, help="where to write the PNG")
    options = parser.parse_args()
    draw(json.loads(options.results.read_text())["results"], options.out)


if __name__ == "__main__":
    main()
