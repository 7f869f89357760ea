"""Risk-coverage curves of several methods in one drawing, and the histogram of one method's confidences."""

from collections.abc import Mapping

import numpy as np

from laplace_lora.evaluation.metrics import FloatArray, IntArray
from laplace_lora.evaluation.selective import RiskCoverage
from laplace_lora.evaluation.svg import Frame, round_ticks

#: Bars between confidence 0 and 1.
HISTOGRAM_BINS = 20
# Points of a drawn curve: finer than a screen shows.
_POINTS = 240
# The error rate among the first few examples jumps between 0, 1/2 and 1 and would set the scale of the whole drawing.
_FIRST_EXAMPLES = 10


def risk_coverage_svg(curves: Mapping[str, RiskCoverage], css_classes: Mapping[str, str], label: str) -> str:
    """Draw error rate against coverage, one line per method.

    Args:
        curves: The curve of each method.
        css_classes: Class of each method's line, which decides its colour and dashes.
        label: Text alternative of the picture, already escaped.

    Returns:
        One ``svg`` element; lines begin at ten examples (or at the first, where there are fewer than twenty).
    """
    chosen = {name: _thinned(len(curve.coverage)) for name, curve in curves.items()}
    highest = max(float(curve.risk[chosen[name]].max()) for name, curve in curves.items())
    ticks = round_ticks(highest if highest > 0.0 else 0.01)
    frame = Frame(0.0, ticks[-1], width=520.0, height=220.0)
    shapes = [
        frame.open("chart wide", label),
        *frame.axes("coverage: share of examples answered, the surest first", "error rate", ticks, percent=True),
    ]
    for name, curve in curves.items():
        points = " ".join(f"{frame.x(curve.coverage[i]):.1f},{frame.y(curve.risk[i]):.1f}" for i in chosen[name])
        shapes.append(f'<polyline class="curve {css_classes[name]}" points="{points}"/>')
    return "".join([*shapes, "</svg>"])


def histogram_svg(confidence: FloatArray, correct: FloatArray, label: str, css_class: str, lowest: float) -> str:
    """Draw how often each confidence occurs, right predictions below, wrong ones stacked on top.

    Args:
        confidence: (N,) largest probability of each row.
        correct: (N,) 1.0 where the prediction is right.
        label: Text alternative of the picture, already escaped.
        css_class: Class of the ``svg`` element, which decides the colour of the bars.
        lowest: Confidence at which the axis begins.

    Returns:
        One ``svg`` element.
    """
    right, wrong = histogram(confidence, correct)
    total = len(confidence)
    ticks = round_ticks(float((right + wrong).max()) / total)
    frame = Frame(lowest, ticks[-1], height=130.0)
    shapes = [frame.open(f"chart {css_class}", label), *frame.axes("confidence", "share of examples", ticks)]
    for b in range(HISTOGRAM_BINS):
        if right[b] + wrong[b] == 0:
            continue
        start, end = b / HISTOGRAM_BINS, (b + 1) / HISTOGRAM_BINS
        low, high = right[b] / total, (right[b] + wrong[b]) / total
        shapes += [
            f"<g><title>confidence {start:.2f} to {end:.2f}: {right[b]} right, {wrong[b]} wrong</title>",
            frame.box("right", start, end, 0.0, low),
            frame.box("wrong", start, end, low, high),
            "</g>",
        ]
    return "".join([*shapes, "</svg>"])


def histogram(confidence: FloatArray, correct: FloatArray) -> tuple[IntArray, IntArray]:
    """Count right and wrong predictions by confidence.

    Args:
        confidence: (N,) largest probability of each row.
        correct: (N,) 1.0 where the prediction is right.

    Returns:
        (20,) right and (20,) wrong predictions in bars of equal width, closed on the right.
    """
    inner = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)[1:-1]
    index = np.digitize(confidence, inner, right=True)
    hits = correct > 0.5
    return (
        np.bincount(index[hits], minlength=HISTOGRAM_BINS).astype(np.int64),
        np.bincount(index[~hits], minlength=HISTOGRAM_BINS).astype(np.int64),
    )


def _thinned(examples: int) -> IntArray:
    """Choose the points of a curve that are drawn."""
    first = _FIRST_EXAMPLES - 1 if examples >= 2 * _FIRST_EXAMPLES else 0
    return np.unique(np.linspace(first, examples - 1, _POINTS).round().astype(np.int64))
