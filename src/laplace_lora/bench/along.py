"""Figures against training steps, as the paper's figures have them: over-confidence as it grows."""

import itertools
import math
import statistics
from collections.abc import Sequence
from html import escape

from laplace_lora.bench.tables import METRICS, Line, Metric, figure_of
from laplace_lora.evaluation.svg import Frame, round_ticks


def along_figures(lines: Sequence[Line]) -> str:
    """Draw accuracy, ECE and NLL of the methods that were asked at every checkpoint, mean over seeds.

    Args:
        lines: Of results.jsonl.

    Returns:
        HTML; nothing where only the last checkpoint was asked.
    """
    tasks = list(dict.fromkeys(line["task"] for line in lines if line["step"] is not None))
    if not tasks:
        return ""
    parts = ["<h2>Along the training</h2>"]
    for task in tasks:
        figures = "".join(_figure(task, [line for line in lines if line["task"] == task], m) for m in METRICS[:3])
        parts.append(f'<h3>{escape(task)}</h3><div class="figures">{figures}</div>')
    return "\n".join(parts)


def along(lines: Sequence[Line], metric: Metric) -> dict[str, list[tuple[int, float]]]:
    """Collect one metric against the steps of training.

    Args:
        lines: Of one task.
        metric: Which.

    Returns:
        By title of the method: steps, in order, and the mean over the seeds asked there, in the metric's scale;
        infinite where one seed's NLL is.
    """
    asked = {line["method"] for line in lines if line["step"] is not None}
    found: dict[str, dict[int, list[float]]] = {}
    for line in lines:
        value = figure_of(line["figures"], metric)
        if line["method"] in asked and value is not None:
            step = line["total_steps"] if line["step"] is None else line["step"]
            found.setdefault(line["title"], {}).setdefault(step, []).append(metric.scale * value)
    return {
        title: sorted((step, statistics.fmean(values)) for step, values in points.items())
        for title, points in found.items()
    }


def _figure(task: str, lines: Sequence[Line], metric: Metric) -> str:
    curves = along(lines, metric)
    finite = [value for points in curves.values() for _, value in points if math.isfinite(value)]
    highest = max(finite, default=0.0)
    ticks = round_ticks(highest if highest > 0.0 else 0.01)
    steps = round_ticks(max(step for points in curves.values() for step, _ in points))
    frame = Frame(0.0, ticks[-1], end=steps[-1])
    label = escape(f"{metric.title} on {task} against training steps", quote=True)
    whole = [step for step in steps if step == round(step)]
    shapes = [frame.open("chart", label), *frame.axes("training steps", metric.title, ticks, counts=whole)]
    keys, infinite = [], list[str]()
    for index, (title, points) in enumerate(curves.items()):
        # A curve ends where its mean is infinite, and begins anew behind it.
        for bounded, run in itertools.groupby(points, key=lambda point: math.isfinite(point[1])):
            if bounded:
                places = " ".join(f"{frame.x(step):.1f},{frame.y(value):.1f}" for step, value in run)
                shapes.append(f'<polyline class="curve c{index % 8}" points="{places}"/>')
        missing = [str(step) for step, value in points if math.isinf(value)]
        infinite += [f"{title} at {', '.join(missing)}"] if missing else []
        keys.append(f'<span class="key"><i class="c{index % 8}"></i>{escape(title)}</span>')
    missed = f"<span>infinite: {escape('; '.join(infinite))}</span>" if infinite else ""
    return (
        f'<figure><figcaption>{escape(metric.title)}{missed}</figcaption><div class="legend">{"".join(keys)}</div>'
        f"{''.join(shapes)}</svg></figure>"
    )
