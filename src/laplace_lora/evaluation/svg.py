"""Reliability diagrams as inline SVG: sharp at any size, no image library, colours taken from the page's style."""

import dataclasses
import math

from laplace_lora.evaluation.metrics import FloatArray, Reliability

_WIDTH, _HEIGHT = 300.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 14.0, 12.0, 42.0
_GAP = 0.06  # between bars, as a share of their width


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Where data lie on the drawing; the confidence axis begins at ``lowest``."""

    lowest: float

    def x(self, confidence: float) -> float:
        """Place a confidence."""
        return _LEFT + (confidence - self.lowest) / (1.0 - self.lowest) * _WIDTH

    def y(self, accuracy: float) -> float:
        """Place an accuracy."""
        return _TOP + (1.0 - accuracy) * _HEIGHT

    def box(self, css_class: str, left: float, right: float, low: float, high: float) -> str:
        """Draw a rectangle given in data units, cut off at the left edge of the drawing."""
        start, end = max(left, self.lowest), right
        margin = _GAP * (right - left) / 2.0
        width = self.x(end - margin) - self.x(start + margin)
        height = max(0.0, high - low) * _HEIGHT
        return (
            f'<rect class="{css_class}" x="{self.x(start + margin):.1f}" y="{self.y(high):.1f}" '
            f'width="{width:.1f}" height="{height:.1f}"/>'
        )

    def line(self, css_class: str, start: tuple[float, float], end: tuple[float, float]) -> str:
        """Draw a line between two points given as (confidence, accuracy)."""
        return (
            f'<line class="{css_class}" x1="{self.x(start[0]):.1f}" y1="{self.y(start[1]):.1f}" '
            f'x2="{self.x(end[0]):.1f}" y2="{self.y(end[1]):.1f}"/>'
        )


def lowest_shown(classes: int) -> float:
    """Choose where the confidence axis begins: confidence never falls below 1 / K.

    Args:
        classes: K.

    Returns:
        A confidence between 0 and 0.45.
    """
    return max(0.0, 1.0 / classes - 0.05)


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
    scale = _Scale(lowest)
    shapes = [
        f'<svg class="reliability {css_class}" viewBox="0 0 {_LEFT + _WIDTH + _RIGHT:.0f} '
        f'{_TOP + _HEIGHT + _BOTTOM:.0f}" role="img" aria-label="{label}" xmlns="http://www.w3.org/2000/svg">',
        *_axes(scale),
        *_bins(scale, diagram, band),
        scale.line("diagonal", (lowest, lowest), (1.0, 1.0)),
        "</svg>",
    ]
    return "".join(shapes)


def _axes(scale: _Scale) -> list[str]:
    """Draw the grid, its numbers and the names of the axes."""
    shapes = []
    ticks = [step / 5 for step in range(6)]
    for value in ticks:
        shapes.append(scale.line("grid", (scale.lowest, value), (1.0, value)))
        shapes.append(f'<text x="{_LEFT - 6:.1f}" y="{scale.y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    fine = [step / 10 for step in range(11)] if scale.lowest > 0.3 else ticks
    bottom = _TOP + _HEIGHT
    shapes += [
        f'<text x="{scale.x(value):.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{value:.1f}</text>'
        for value in fine
        if value >= scale.lowest
    ]
    middle = _TOP + _HEIGHT / 2
    shapes += [
        f'<text x="{_LEFT + _WIDTH / 2:.1f}" y="{bottom + 35:.1f}" text-anchor="middle">confidence</text>',
        f'<text x="11" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 11 {middle:.1f})">accuracy</text>',
    ]
    return shapes


def _bins(scale: _Scale, diagram: Reliability, band: tuple[FloatArray, FloatArray]) -> list[str]:
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
            scale.box("bar", left, right, 0.0, accuracy),
            scale.box("band", left, right, float(band[0][b]), float(band[1][b])),
            scale.line("gap", (confidence, accuracy), (confidence, confidence)),
            f'<circle class="dot" cx="{scale.x(confidence):.1f}" cy="{scale.y(accuracy):.1f}" r="{radius:.1f}"/></g>',
        ]
    return shapes
