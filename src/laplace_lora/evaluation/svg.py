"""Inline SVG: sharp at any size, no image library, colours from the page's style. Axes, and reliability diagrams."""

import dataclasses
import math
from collections.abc import Sequence

from laplace_lora.evaluation.metrics import FloatArray, Reliability

_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 24.0, 12.0, 44.0
_GAP = 0.06  # between bars, as a share of their width


@dataclasses.dataclass(frozen=True)
class Frame:
    """The plot area of a drawing: which data lie where.

    Attributes:
        lowest: Value at the left edge of the horizontal axis.
        top: Value at the upper edge of the vertical axis, which begins at 0.
        width: Of the plot area, in the drawing's own units.
        height: Likewise.
        end: Value at the right edge of the horizontal axis.
    """

    lowest: float
    top: float = 1.0
    width: float = 260.0
    height: float = 244.0
    end: float = 1.0

    def x(self, value: float) -> float:
        """Place a value of the horizontal axis."""
        return _LEFT + (value - self.lowest) / (self.end - self.lowest) * self.width

    def y(self, value: float) -> float:
        """Place a value of the vertical axis."""
        return _TOP + (1.0 - value / self.top) * self.height

    def open(self, css_class: str, label: str) -> str:
        """Begin the drawing.

        Args:
            css_class: Classes of the ``svg`` element, which decide its colours.
            label: Text alternative of the picture, already escaped.

        Returns:
            The opening tag.
        """
        return (
            f'<svg class="{css_class}" viewBox="0 0 {_LEFT + self.width + _RIGHT:.0f} '
            f'{_TOP + self.height + _BOTTOM:.0f}" role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg">'
        )

    def box(self, css_class: str, left: float, right: float, low: float, high: float) -> str:
        """Draw a rectangle given in data units, cut off at the left edge of the plot area."""
        start = max(left, self.lowest)
        margin = _GAP * (right - left) / 2.0
        width = self.x(right - margin) - self.x(start + margin)
        height = max(0.0, high - low) / self.top * self.height
        return (
            f'<rect class="{css_class}" x="{self.x(start + margin):.1f}" y="{self.y(high):.1f}" '
            f'width="{width:.1f}" height="{height:.1f}"/>'
        )

    def line(self, css_class: str, start: tuple[float, float], end: tuple[float, float]) -> str:
        """Draw a line between two points given in data units."""
        return (
            f'<line class="{css_class}" x1="{self.x(start[0]):.1f}" y1="{self.y(start[1]):.1f}" '
            f'x2="{self.x(end[0]):.1f}" y2="{self.y(end[1]):.1f}"/>'
        )

    def axes(
        self,
        horizontal: str,
        vertical: str,
        ticks: Sequence[float],
        percent: bool = False,
        counts: Sequence[float] | None = None,
    ) -> list[str]:
        """Draw the grid, its numbers and the names of the axes.

        Args:
            horizontal: Name of the horizontal axis.
            vertical: Name of the vertical axis.
            ticks: Values to mark on the vertical axis.
            percent: Whether both axes are numbered in per cent.
            counts: Whole numbers to mark on the horizontal axis; None for shares of 1.

        Returns:
            SVG elements.
        """
        bottom, middle = _TOP + self.height, _TOP + self.height / 2
        fine = [step / 10 for step in range(11)] if self.lowest > 0.3 else [step / 5 for step in range(6)]

        def written(value: float, digits: int) -> str:
            return f"{100 * value:.{digits - 2}f} %" if percent else f"{value:.{digits}f}"

        # As many decimals as tell one mark from the next.
        digits = max(2 if percent else 1, math.ceil(-math.log10(ticks[1] - ticks[0]) - 1e-9))
        shapes = []
        for value in ticks:
            place = f'x="{_LEFT - 5:.1f}" y="{self.y(value) + 4:.1f}" text-anchor="end"'
            shapes += [
                self.line("grid", (self.lowest, value), (self.end, value)),
                f"<text {place}>{written(value, digits)}</text>",
            ]
        shapes += [
            f'<text x="{self.x(value):.1f}" y="{bottom + 18:.1f}" text-anchor="middle">'
            f"{written(value, 2 if percent else 1) if counts is None else f'{value:.0f}'}</text>"
            for value in (fine if counts is None else counts)
            if value >= self.lowest
        ]
        turned = f'class="vertical" x="9" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 9 {middle:.1f})"'
        return [
            *shapes,
            f'<text x="{_LEFT + self.width / 2:.1f}" y="{bottom + 37:.1f}" text-anchor="middle">{horizontal}</text>',
            f"<text {turned}>{vertical}</text>",
        ]


def round_ticks(highest: float) -> list[float]:
    """Choose round values from 0 for a vertical axis that has to hold ``highest``.

    Args:
        highest: The largest value drawn; above zero.

    Returns:
        Three to six values, the last at least ``highest``.
    """
    power = 10.0 ** math.floor(math.log10(highest))
    step = next(power * factor for factor in (0.2, 0.5, 1.0, 2.0) if math.ceil(highest / (power * factor) - 1e-9) <= 5)
    return [step * i for i in range(max(3, math.ceil(highest / step - 1e-9) + 1))]


def lowest_shown(classes: int) -> float:
    """Choose where the confidence axis begins: confidence never falls below 1 / K.

    Args:
        classes: K.

    Returns:
        A confidence between 0 and 0.45.
    """
    return max(0.0, min(0.5, 1.0 / classes) - 0.05)


def reliability_svg(
    diagram: Reliability, band: tuple[FloatArray, FloatArray], label: str, css_class: str, lowest: float = 0.0
) -> str:
    """Draw accuracy against confidence, with the band in which a calibrated model would lie.

    Each bin is a bar from 0 to its accuracy and a dot whose area grows with its number of examples, joined to the
    diagonal by a stroke (the gap that the calibration error adds up). The grey boxes are where its accuracy would
    fall if the confidences were right.

    Args:
        diagram: The bins.
        band: (bins,) lower and (bins,) upper accuracy of a calibrated model; NaN in an empty bin.
        label: Text alternative of the picture, already escaped.
        css_class: Class of the ``svg`` element, which decides the colour of the bars.
        lowest: Confidence at which the axis begins.

    Returns:
        One ``svg`` element.
    """
    frame = Frame(lowest)
    shapes = [
        frame.open(f"chart {css_class}", label),
        *frame.axes("confidence", "accuracy", [step / 5 for step in range(6)]),
        *_bins(frame, diagram, band),
        frame.line("diagonal", (lowest, lowest), (1.0, 1.0)),
        "</svg>",
    ]
    return "".join(shapes)


def _bins(frame: Frame, diagram: Reliability, band: tuple[FloatArray, FloatArray]) -> list[str]:
    """Draw each bin's accuracy, its gap to the confidence, and the calibrated band."""
    most = max(1, int(diagram.counts.max()))
    shapes = []
    for b, count in enumerate(diagram.counts):
        if count == 0:
            continue
        left, right = float(diagram.edges[b]), float(diagram.edges[b + 1])
        accuracy, confidence = float(diagram.accuracy[b]), float(diagram.confidence[b])
        radius = 2.5 + 7.0 * math.sqrt(int(count) / most)
        title = f"confidence {confidence:.2f}, accuracy {accuracy:.2f}, {count} examples"
        shapes += [
            f"<g><title>{title}</title>",
            frame.box("bar", left, right, 0.0, accuracy),
            frame.box("band", left, right, float(band[0][b]), float(band[1][b])),
            frame.line("gap", (confidence, accuracy), (confidence, confidence)),
            f'<circle class="dot" cx="{frame.x(confidence):.1f}" cy="{frame.y(accuracy):.1f}" r="{radius:.1f}"/></g>',
        ]
    return shapes
