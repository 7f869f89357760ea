"""The comparison as one PNG picture, for a README or a slide. Needs matplotlib, the ``plot`` extra."""

import itertools
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any

from laplace_lora.errors import MissingExtraError
from laplace_lora.evaluation import metrics
from laplace_lora.evaluation.comparison import Comparison, Scores
from laplace_lora.evaluation.examples import Predictions
from laplace_lora.evaluation.metrics import FloatArray, IntArray
from laplace_lora.evaluation.names import method_description, method_name
from laplace_lora.evaluation.svg import lowest_shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY = "#8b97a5"
# The report's colours, in its order: reference, subject, others.
_COLOURS = ("#bd5128", "#1f7a8c", "#7352a8", "#84701a", "#b0447c", "#47783a", "#46599a", "#666666")
_MOST_COLUMNS = 3


def write_picture(path: str | os.PathLike[str], comparison: Comparison, predictions: Predictions) -> pathlib.Path:
    """Draw the reliability diagrams of all methods side by side, three in a row.

    Args:
        path: Where to write the PNG; its folder is made where it is missing.
        comparison: The scores of all methods.
        predictions: What they predicted.

    Returns:
        The path.
    """
    figure_class, canvas_class = _matplotlib()
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    methods = comparison.methods
    columns = min(len(methods), _MOST_COLUMNS)
    lines = math.ceil(len(methods) / columns)
    # Figure and canvas are used directly: pyplot would open a window system and keep the figure alive.
    figure = figure_class(figsize=(4.8 * columns, 4.5 * lines), layout="constrained", facecolor="white")
    canvas_class(figure)
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    order = [comparison.reference, comparison.subject]
    order += [name for name in methods if name not in order]
    for axes, name in itertools.zip_longest(grid.flat, methods):
        if name is None:
            axes.set_visible(False)
            continue
        colour = _COLOURS[order.index(name) % len(_COLOURS)]
        _draw(axes, predictions.probabilities(name), predictions.labels, colour)
        axes.set_title(_title(name, methods[name]), fontsize=11, loc="left")
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy")
    figure.savefig(target, dpi=160, format="png", metadata={"Software": None})
    return target


def _matplotlib() -> tuple[Any, Any]:
    """Import what is needed of matplotlib.

    Returns:
        The figure class and the PNG canvas class.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("drawing a picture needs matplotlib; pip install 'laplace-lora[plot]'.") from error
    return Figure, FigureCanvasAgg


def _title(name: str, scores: Scores) -> str:
    """Head one diagram with its numbers."""
    description = method_description(name)
    head = method_name(name) + (f": {description}" if description else "")
    return f"{head}\nECE {scores.ece:.3f} (floor {scores.ece_floor:.3f}), NLL {scores.nll:.3f}"


def _draw(axes: "Axes", probabilities: FloatArray, labels: IntArray, colour: str) -> None:
    """Draw one reliability diagram.

    Args:
        axes: Where to.
        probabilities: (N, K) the method's probabilities.
        labels: (N,) class numbers.
        colour: Of the bars.
    """
    diagram = metrics.reliability(probabilities, labels)
    low, high = metrics.calibrated_band(probabilities)
    full = diagram.counts > 0
    middle = ((diagram.edges[1:] + diagram.edges[:-1]) / 2)[full]
    width = 0.92 / len(full)
    confidence, accuracy = diagram.confidence[full], diagram.accuracy[full]
    axes.bar(middle, accuracy, width, color=colour, alpha=0.4)
    axes.bar(
        middle, (high - low)[full], width, bottom=low[full], color=_GREY, alpha=0.4, label="95 % of calibrated models"
    )
    axes.vlines(confidence, accuracy, confidence, color=colour, linewidth=2)
    # The area of a dot grows with the number of examples behind it.
    axes.scatter(confidence, accuracy, s=12 + 160 * diagram.counts[full] / diagram.counts.max(), color=colour, zorder=3)
    axes.plot([0, 1], [0, 1], color="#5a6675", linestyle=(0, (4, 4)), linewidth=1)
    axes.set(xlim=(lowest_shown(probabilities.shape[1]), 1.005), ylim=(0.0, 1.02), xlabel="confidence")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
