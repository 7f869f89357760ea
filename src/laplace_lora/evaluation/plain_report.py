"""A report of figures that are not about classes: one HTML file that needs nothing but itself."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources

from laplace_lora.evaluation.figures import Figures, written
from laplace_lora.evaluation.metrics import FloatArray
from laplace_lora.evaluation.names import method_name
from laplace_lora.evaluation.report_sections import details_section
from laplace_lora.evaluation.side_by_side import OWN_SPLIT_NOTE, DataSet
from laplace_lora.evaluation.svg import Frame

Curves = Mapping[str, tuple[FloatArray, FloatArray]]


def plain_report(
    figures: Figures,
    descriptions: Mapping[str, str],
    *,
    title: str,
    subtitle: str,
    curves: Curves | None = None,
    caption: str = "",
    axes: tuple[str, str] = ("", ""),
    details: Sequence[tuple[str, object]] = (),
    data: DataSet | None = None,
) -> str:
    """Write the page; every text that comes from outside is escaped.

    Args:
        figures: What was measured.
        descriptions: Words for each metric, in the order of the table.
        title: Heading of the page.
        subtitle: A sentence on model and data.
        curves: Per method a curve from (0, 0) to (1, 1) that should lie on the diagonal.
        caption: What the drawing shows.
        axes: Words for its axes.
        details: Names and values for a closing table.
        data: What the figures are from.

    Returns:
        HTML without any outside resource or script.
    """
    names = list(figures.methods)
    head = "<th>metric</th>" + "".join(f"<th>{escape(method_name(name))}</th>" for name in names)
    head += "".join(f"<th>{escape(method_name(n))} &minus; {escape(method_name(names[0]))}</th>" for n in names[1:])
    rows = [
        f"<tr><td>{escape(text)}</td>"
        + "".join(
            f'<td class="figure">{escape(written(values.get(metric)))}</td>'
            for values in (*figures.methods.values(), *figures.differences.values())
        )
        + "</tr>"
        for metric, text in descriptions.items()
    ]
    where = "" if data is None else f"{escape(data.title)}: "
    own = f'<p class="note">{OWN_SPLIT_NOTE}.</p>' if data is not None and data.own_split else ""
    drawing = _drawing(curves, caption, axes) if curves else ""
    return f"""{page_head(title)}
<main>
<p class="kicker">{escape(subtitle)}</p>
<h1>{escape(title)}</h1>
{drawing}
<h2>Figures</h2>
<p class="note">{where}{figures.n:,} examples; in brackets 95 % percentile bootstrap intervals over examples.</p>
<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead><tbody>
{chr(10).join(rows)}
</tbody></table></div>
{own}
{details_section(details)}
</main>
</body>
</html>
"""


def page_head(title: str) -> str:
    """Return the other report's head, which holds its styles."""
    template = resources.files(__package__).joinpath("report_template.html").read_text(encoding="utf-8")
    end = template.index("<body")
    return template[:end].replace("$$", "$").replace("$title", escape(title)) + "<body>"


def _drawing(curves: Curves, caption: str, axes: tuple[str, str]) -> str:
    frame = Frame(0.0, 1.0)
    shapes = [
        frame.open("chart", escape(caption, quote=True)),
        *frame.axes(axes[0], axes[1], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        f'<line class="diagonal" x1="{frame.x(0):.1f}" y1="{frame.y(0):.1f}" x2="{frame.x(1):.1f}" '
        f'y2="{frame.y(1):.1f}"/>',
    ]
    keys = []
    for number, (name, (across, up)) in enumerate(curves.items()):
        places = [(frame.x(float(x)), frame.y(float(y))) for x, y in zip(across, up, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        shapes.append(f'<polyline class="curve c{number}" points="{points}"/>')
        shapes += [f'<circle class="dot c{number}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places]
        keys.append(f'<span class="key"><i class="c{number}"></i>{escape(method_name(name))}</span>')
    return (
        f'<figure class="figures few one"><figcaption>{escape(caption)}</figcaption>'
        f'<div class="legend">{"".join(keys)}</div>{"".join(shapes)}</svg></figure>'
    )
