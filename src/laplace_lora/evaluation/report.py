"""The report: one HTML file that needs nothing but itself, from the verdict down to single sentences."""

import os
import pathlib
import tempfile
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template

from laplace_lora.evaluation import metrics
from laplace_lora.evaluation.comparison import Comparison, Scores
from laplace_lora.evaluation.examples import Predictions, Shown, confidently_wrong, most_uncertain
from laplace_lora.evaluation.metrics import FloatArray
from laplace_lora.evaluation.svg import lowest_shown, reliability_svg
from laplace_lora.evaluation.tables import rows
from laplace_lora.evaluation.verdict import verdict

_EXAMPLES_SHOWN = 8


def write_report(
    path: str | os.PathLike[str],
    comparison: Comparison,
    predictions: Predictions,
    *,
    title: str = "Laplace-LoRA report",
    subtitle: str = "",
    footer: str = "",
) -> pathlib.Path:
    """Write the report, whole or not at all.

    Args:
        path: Where to; its folder is made where it is missing.
        comparison: The scores of both methods.
        predictions: What they predicted.
        title: Heading of the page.
        subtitle: A sentence on model and data, below the verdict.
        footer: A closing remark, such as the command that made the report.

    Returns:
        The path.
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = render(comparison, predictions, title=title, subtitle=subtitle, footer=footer)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}.", delete=False
    ) as handle:
        handle.write(text)
    # NamedTemporaryFile makes files private; a report is to be passed around.
    pathlib.Path(handle.name).chmod(0o644)
    pathlib.Path(handle.name).replace(target)
    return target


def render(
    comparison: Comparison,
    predictions: Predictions,
    *,
    title: str = "Laplace-LoRA report",
    subtitle: str = "",
    footer: str = "",
) -> str:
    """Make the page; every text that comes from outside is escaped.

    Args:
        comparison: The scores of both methods.
        predictions: What they predicted.
        title: Heading of the page.
        subtitle: A sentence on model and data.
        footer: A closing remark.

    Returns:
        HTML without any outside resource or script.
    """
    template = resources.files(__package__).joinpath("report_template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        footer=escape(footer),
        verdict=escape(verdict(comparison)),
        n=comparison.n,
        before_caption=_caption(comparison.before),
        after_caption=_caption(comparison.after),
        before_diagram=_diagram(predictions.before, predictions, "before", "Reliability before, MAP"),
        after_diagram=_diagram(predictions.after, predictions, "after", "Reliability after, Laplace"),
        metric_rows=_metric_rows(comparison),
        example_sections=_example_sections(predictions),
    )


def _caption(scores: Scores) -> str:
    """Sum up one diagram."""
    return (
        f"says {100 * scores.confidence:.0f} % on average, is right {100 * scores.accuracy:.0f} % of the time; "
        f"ECE {scores.ece:.3f}, floor {scores.ece_floor:.3f}"
    )


def _diagram(probabilities: FloatArray, predictions: Predictions, css_class: str, label: str) -> str:
    """Draw the reliability of one method."""
    diagram = metrics.reliability(probabilities, predictions.labels)
    band = metrics.calibrated_band(probabilities)
    return reliability_svg(diagram, band, escape(label, quote=True), css_class, lowest_shown(probabilities.shape[1]))


def _metric_rows(comparison: Comparison) -> str:
    """Write the body of the table of metrics."""
    lines = []
    for row in rows(comparison):
        css_class = ' class="sub"' if row.name.startswith(" ") else ""
        lines.append(
            f"<tr{css_class}><td>{escape(row.name.strip())}<small>{escape(row.better)}</small></td>"
            f"<td>{row.before}</td><td>{row.after}</td>"
            f'<td class="interval">{escape(row.difference)}</td><td class="{row.outcome}">{row.outcome}</td></tr>'
        )
    return "\n".join(lines)


def _example_sections(predictions: Predictions) -> str:
    """Write the tables of examples.

    Args:
        predictions: What the methods predicted.

    Returns:
        HTML; empty where there are no texts to show.
    """
    if predictions.texts is None:
        return ""
    by = "mutual information between the answer and the weights" if predictions.epistemic is not None else "confidence"
    sections = (
        (
            "Most uncertain",
            f"Where the posterior doubts the adapter most (by {by}): what to label next, or to hand to a person.",
            most_uncertain(predictions, _EXAMPLES_SHOWN),
        ),
        (
            "Most confidently wrong before",
            "Where MAP was surest and the label said otherwise, and what Laplace makes of the same sentence.",
            confidently_wrong(predictions, predictions.before, _EXAMPLES_SHOWN),
        ),
        (
            "Most confidently wrong after",
            "What Laplace still gets wrong with confidence. Some of it is label noise, which no model can foresee.",
            confidently_wrong(predictions, predictions.after, _EXAMPLES_SHOWN),
        ),
    )
    return "\n".join(_section(heading, note, shown) for heading, note, shown in sections)


def _section(heading: str, note: str, shown: Sequence[Shown]) -> str:
    """Write one table of examples; columns that nothing is known of are left out."""
    if not shown:
        return f"<h2>{heading}</h2>\n<p class='note'>None.</p>"
    truth = any(example.truth is not None for example in shown)
    epistemic = any(example.epistemic is not None for example in shown)
    head = '<th>Text</th><th class="word">Label</th><th class="word">Predicted</th><th>MAP</th><th>Laplace</th>'
    head += "<th>True p</th>" * truth + "<th>Epistemic (nats)</th>" * epistemic
    lines = []
    for example in shown:
        cells = [
            f'<td class="text">{escape(example.text)}</td>',
            f'<td class="word">{escape(example.label)}</td><td class="word">{escape(example.predicted)}</td>',
            f'<td class="before-ink">{example.before:.2f}</td><td class="after-ink">{example.after:.2f}</td>',
        ]
        cells += [f"<td>{_number(example.truth)}</td>"] * truth + [f"<td>{_number(example.epistemic)}</td>"] * epistemic
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f"<h2>{heading}</h2>\n<p class='note'>{escape(note)} Probabilities are those of the predicted class.</p>\n"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _number(value: float | None) -> str:
    """Write a number that may be unknown."""
    return "" if value is None else f"{value:.2f}"
