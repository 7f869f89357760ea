"""Reliability diagrams as inline SVG: sharp at any size, no image library, colours taken from the page's style."""

import math

from laplace_lora.evaluation.metrics import FloatArray, Reliability

_SIZE = 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 12.0, 12.0, 40.0
_COUNTS = 34.0


def reliability_svg(diagram: Reliability, band: tuple[FloatArray, FloatArray], label: str, css_class: str) -> str:
    """Draw accuracy against confidence, with the band in which a calibrated model would lie.

    Each bin is a bar from 0 to its accuracy, joined to the diagonal by a stroke (the gap that the calibration error
    adds up). The grey boxes are where its accuracy would fall if the confidences were right. The thin bars below
    show how many examples each bin holds.

    Args:
        diagram: The bins.
        band: (bins,) lower and (bins,) upper accuracy of a calibrated model; NaN in an empty bin.
        label: Text alternative of the picture.
        css_class: Class of the ``svg`` element, which decides the colour of the bars.

    Returns:
        One ``svg`` element.
    """
    height = _SIZE + _TOP + _BOTTOM + _COUNTS
    width = _SIZE + _LEFT + _RIGHT
    shapes = [
        f'<svg class="reliability {css_class}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{label}" xmlns="http://www.w3.org/2000/svg">',
        *_axes(),
        *_bars(diagram, band),
        f'<line class="diagonal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>',
        *_counts(diagram),
        "</svg>",
    ]
    return "".join(shapes)


def _x(value: float) -> str:
    """Place a confidence on the page."""
    return f"{_LEFT + value * _SIZE:.1f}"


def _y(value: float) -> str:
    """Place an accuracy on the page."""
    return f"{_TOP + (1.0 - value) * _SIZE:.1f}"


def _axes() -> list[str]:
    """Draw the grid, its numbers and the names of the axes."""
    shapes = []
    for step in range(6):
        value = step / 5
        shapes += [
            f'<line class="grid" x1="{_x(0)}" y1="{_y(value)}" x2="{_x(1)}" y2="{_y(value)}"/>',
            f'<text x="{_LEFT - 6:.1f}" y="{float(_y(value)) + 4:.1f}" text-anchor="end">{value:.1f}</text>',
            f'<text x="{_x(value)}" y="{_TOP + _SIZE + _COUNTS + 16:.1f}" text-anchor="middle">{value:.1f}</text>',
        ]
    middle = _TOP + _SIZE / 2
    shapes += [
        f'<text x="{_x(0.5)}" y="{_TOP + _SIZE + _COUNTS + 34:.1f}" text-anchor="middle">confidence</text>',
        f'<text x="11" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 11 {middle:.1f})">accuracy</text>',
    ]
    return shapes


def _bars(diagram: Reliability, band: tuple[FloatArray, FloatArray]) -> list[str]:
    """Draw each bin's accuracy, its gap to the confidence, and the calibrated band."""
    shapes = []
    for b, count in enumerate(diagram.count):
        if count == 0:
            continue
        left, right = float(diagram.edges[b]), float(diagram.edges[b + 1])
        accuracy, confidence = float(diagram.accuracy[b]), float(diagram.confidence[b])
        low, high = float(band[0][b]), float(band[1][b])
        title = f"confidence {confidence:.2f}, accuracy {accuracy:.2f}, {count} examples"
        shapes += [
            f"<g><title>{title}</title>",
            _rectangle("bar", left, right, 0.0, accuracy),
            _rectangle("band", left, right, low, high),
            f'<line class="gap" x1="{_x(confidence)}" y1="{_y(accuracy)}" x2="{_x(confidence)}" y2="{_y(confidence)}"/>',
            f'<circle class="dot" cx="{_x(confidence)}" cy="{_y(accuracy)}" r="4"/></g>',
        ]
    return shapes


def _rectangle(css_class: str, left: float, right: float, low: float, high: float) -> str:
    """Draw one rectangle given in data units."""
    return (
        f'<rect class="{css_class}" x="{_x(left + 0.004)}" y="{_y(high)}" '
        f'width="{(right - left - 0.008) * _SIZE:.1f}" height="{max(0.0, high - low) * _SIZE:.1f}"/>'
    )


def _counts(diagram: Reliability) -> list[str]:
    """Draw the number of examples per bin as hanging bars below the axis."""
    most = max(1, int(diagram.count.max()))
    top = _TOP + _SIZE
    shapes = []
    for b, count in enumerate(diagram.count):
        # Square root, so that a bin of ten stays visible beside one of a thousand.
        length = (_COUNTS - 8.0) * math.sqrt(int(count) / most)
        left, right = float(diagram.edges[b]), float(diagram.edges[b + 1])
        shapes.append(
            f'<rect class="count" x="{_x(left + 0.004)}" y="{top + 2:.1f}" '
            f'width="{(right - left - 0.008) * _SIZE:.1f}" height="{length:.1f}"/>'
        )
    return shapes
