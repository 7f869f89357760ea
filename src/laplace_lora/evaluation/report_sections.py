"""The parts of the report, each a piece of HTML; every text that comes from outside is escaped here."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from laplace_lora.evaluation import metrics, selective
from laplace_lora.evaluation.comparison import FEWEST_TO_JUDGE, Comparison
from laplace_lora.evaluation.examples import Predictions, Shown, confidently_wrong, most_uncertain
from laplace_lora.evaluation.markup import html_cell, html_table
from laplace_lora.evaluation.names import method_description, method_name
from laplace_lora.evaluation.ood import OutOfDistribution
from laplace_lora.evaluation.side_by_side import DETECTED_BY, Line, html_side_by_side
from laplace_lora.evaluation.svg import lowest_shown, reliability_svg
from laplace_lora.evaluation.svg_curves import histogram_svg, risk_coverage_svg
from laplace_lora.evaluation.tables import Cell, contrasts, difference_cell, ends, metrics_shown, number, value_cell

_EXAMPLES_SHOWN = 8
_TEXT_SHOWN = 400  # characters of an example
_COLOURS = 8  # that the template has; further methods begin anew
_COVERAGES = (0.2, 0.5, 0.8, 0.9, 1.0)
_SCORES = {"confidence": "confidence", "entropy": "entropy", "mutual_information": "mutual information"}


def css_class(comparison: Comparison, method: str) -> str:
    """Choose a method's colour: the first for the reference, the second for the subject, then the others in order."""
    first = dict.fromkeys((comparison.reference, comparison.subject))
    order = [*first, *(name for name in comparison.methods if name not in first)]
    return f"c{order.index(method) % _COLOURS}"


def _method(comparison: Comparison, method: str) -> str:
    """Write a method's name in its colour."""
    return f'<b class="ink {css_class(comparison, method)}">{escape(method_name(method))}</b>'


def reliability_figures(comparison: Comparison, predictions: Predictions) -> str:
    """Draw every method's reliability.

    Args:
        comparison: The scores.
        predictions: The probabilities.

    Returns:
        One ``figure`` per method, side by side.
    """
    figures = []
    for method, scores in comparison.methods.items():
        values = predictions.probabilities(method)
        diagram = metrics.reliability(values, predictions.labels)
        summary = (
            f"says {100 * scores.confidence:.0f} % on average, is right {100 * scores.accuracy:.0f} % of the time; "
            f"ECE {scores.ece:.3f}, floor {scores.ece_floor:.3f}"
        )
        picture = reliability_svg(
            diagram,
            metrics.calibrated_band(values),
            escape(f"Reliability diagram of {method_name(method)}: it {summary}.", quote=True),
            css_class(comparison, method),
            lowest_shown(values.shape[1]),
        )
        description = method_description(method)
        name = _method(comparison, method) + (f": {escape(description)}" if description else "")
        figures.append(f"<figure><figcaption>{name}<span>{summary}</span></figcaption>{picture}</figure>")
    return _grid(figures)


def histogram_figures(predictions: Predictions, comparison: Comparison) -> str:
    """Draw how often each method says which confidence.

    Args:
        predictions: The probabilities.
        comparison: The scores.

    Returns:
        One ``figure`` per method, side by side.
    """
    figures = []
    for method in comparison.methods:
        values = predictions.probabilities(method)
        confidence = values.max(axis=1)
        median = f"half of the predictions are made with {100 * float(np.median(confidence)):.0f} % or more"
        label = escape(f"Histogram of the confidence of {method_name(method)}: {median}.", quote=True)
        picture = histogram_svg(
            confidence,
            metrics.correct(values, predictions.labels),
            label,
            css_class(comparison, method),
            lowest_shown(values.shape[1]),
        )
        caption = f"{_method(comparison, method)}<span>{median}</span>"
        figures.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    return _grid(figures)


def metric_table(comparison: Comparison) -> str:
    """Write every metric of every method with its interval.

    Args:
        comparison: The scores.

    Returns:
        A table, and a remark where a loss is infinite.
    """
    head = "<th>Metric</th>" + "".join(f"<th>{_method(comparison, name)}</th>" for name in comparison.methods)
    lines = []
    for metric in metrics_shown(comparison):
        kind = ' class="sub"' if metric.name.startswith(" ") else ""
        better = {True: "lower is better", False: "higher is better", None: ""}[metric.less_is_better]
        note = "; ".join(part for part in (better, metric.note) if part)
        cells = "".join(html_cell(value_cell(comparison, name, metric)) for name in comparison.methods)
        lines.append(f"<tr{kind}><td>{metric.name.strip()}<small>{note}</small></td>{cells}</tr>")
    remarks = [
        f"{escape(method_name(name))} gave {scores.impossible} of {comparison.n} labels probability zero: its log loss "
        "is infinite and has no interval."
        for name, scores in comparison.methods.items()
        if scores.impossible
    ]
    if any(scores.auroc is None for scores in comparison.methods.values()):
        remarks.append("Error detection is not defined (n/a) where all predictions are right or all are wrong.")
    below = "".join(f'<p class="note">{remark}</p>' for remark in remarks)
    return html_table("All metrics", head, lines) + below


def difference_section(comparison: Comparison) -> str:
    """Write the paired differences.

    Args:
        comparison: The scores.

    Returns:
        A section; empty where there is only one method.
    """
    pairs = contrasts(comparison)
    if not pairs:
        return ""
    head = "<th>Metric</th>" + "".join(f"<th>{escape(pair.title)}</th>" for pair in pairs)
    lines = []
    for metric in metrics_shown(comparison):
        if metric.less_is_better is None:
            continue
        cells = [difference_cell(comparison, pair, metric) for pair in pairs]
        lines.append(
            f"<tr><td>{metric.name}</td>"
            + "".join(html_cell(cell) if cell else "<td></td>" for cell in cells)
            + "</tr>"
        )
    few = (
        f" {comparison.n} examples are too few for these intervals to be trusted, so nothing is called better or worse."
        if comparison.n < FEWEST_TO_JUDGE
        else ""
    )
    return (
        "<h3>Differences</h3>\n<p class='note'>Each column is the first method minus the second, on the same examples, "
        "with 95 % paired bootstrap intervals. Better or worse is said only where the interval excludes zero. The "
        f"intervals do not cover the luck of another training run.{few}</p>\n" + html_table("Differences", head, lines)
    )


def data_sets_section(lines: Sequence[Line]) -> str:
    """Write the methods on every data set.

    Args:
        lines: One per data set and method.

    Returns:
        A section; empty where there are none.
    """
    if not lines:
        return ""
    apart = any("detection" in line.figures for line in lines)
    note = (
        f" Told apart: the chance that an evaluated example is surer, by its {DETECTED_BY}, than one of these."
        if apart
        else ""
    )
    return (
        f"<h3>By data set</h3>\n<p class='note'>Every method on every data set.{note}</p>\n{html_side_by_side(lines)}"
    )


def risk_coverage_figure(comparison: Comparison, predictions: Predictions) -> str:
    """Draw the risk-coverage curves, with a table of some of their points.

    Args:
        comparison: The scores.
        predictions: The probabilities.

    Returns:
        A figure and a table.
    """
    curves = {
        name: selective.risk_coverage(predictions.probabilities(name), predictions.labels)
        for name in comparison.methods
    }
    classes = {name: css_class(comparison, name) for name in curves}
    # The point at or just above each coverage: ceil, with room for rounding.
    points = [min(comparison.n, max(1, int(np.ceil(share * comparison.n - 1e-9)))) - 1 for share in _COVERAGES]
    written = {name: [f"{100 * float(curve.risk[i]):.1f} %" for i in points] for name, curve in curves.items()}
    spoken = "; ".join(
        f"{method_name(name)} errs on {cells[1]} of the surer half, on {cells[-1]} of all"
        for name, cells in written.items()
    )
    picture = risk_coverage_svg(curves, classes, escape(f"Risk-coverage curves: {spoken}.", quote=True))
    legend = "".join(
        f'<span class="key"><i class="{classes[name]}"></i>{_method(comparison, name)}</span>' for name in curves
    )
    head = "<th>Error among the surest</th>"
    head += "".join(f'<th class="share">{100 * share:.0f} %</th>' for share in _COVERAGES)
    lines = []
    for name, cells in written.items():
        values = "".join(f'<td class="share">{cell}</td>' for cell in cells)
        lines.append(f"<tr><td>{_method(comparison, name)}</td>{values}</tr>")
    figure = f'<figure class="wide"><div class="legend">{legend}</div>{picture}</figure>'
    return figure + "\n" + html_table("Error by coverage", head, lines)


def out_of_distribution_section(comparison: Comparison, results: Mapping[str, OutOfDistribution]) -> str:
    """Write how well outside data are noticed.

    Args:
        comparison: The methods, for their colours.
        results: Detection by name of the outside data set.

    Returns:
        A section; empty where nothing was measured.
    """
    if not results:
        return ""
    parts = [
        "<h2>Does it notice inputs of another kind?</h2>\n<p class='note'>AUROC: the chance that a test example looks "
        "more familiar than an outside one (0.5 is guessing, 1 perfect). FPR95: the share of outside examples let "
        "through when 95 % of the test examples are (lower is better). With 95 % bootstrap intervals.</p>"
    ]
    head = '<th>Method</th><th class="word">by</th><th>AUROC</th><th>FPR95</th>'
    for name, result in results.items():
        lines = []
        for method, detections in result.methods.items():
            known = method in comparison.methods
            title = _method(comparison, method) if known else escape(method_name(method))
            for by, detection in detections.items():
                cells = "".join(html_cell(Cell(number(value.estimate), ends(value))) for value in detection)
                lines.append(f'<tr><td>{title}</td><td class="word">{escape(_SCORES.get(by, by))}</td>{cells}</tr>')
        sizes = f"{result.n_in:,} test examples against {result.n_out:,} outside ones."
        table = html_table(f"Detection of {name}", head, lines)
        parts.append(f"<h3>{escape(name)}</h3>\n<p class='note'>{sizes}</p>\n{table}")
    return "\n".join(parts)


def example_sections(comparison: Comparison, predictions: Predictions) -> str:
    """Write the tables of examples.

    Args:
        comparison: The methods.
        predictions: What they predicted.

    Returns:
        HTML; empty where there are no texts to show.
    """
    if predictions.texts is None:
        return ""
    subject, reference = comparison.subject, comparison.reference
    name, other = method_name(subject), method_name(reference)
    if predictions.epistemic is not None:
        doubt = "by the mutual information between the answer and the weights): what to label next, or to hand to"
    else:
        doubt = "by the entropy of its probabilities): what to hand to"
    parts = [
        _examples(
            comparison,
            "Most uncertain",
            f"Where {name} is least sure ({doubt} a person.",
            most_uncertain(predictions, subject, _EXAMPLES_SHOWN),
        )
    ]
    if other != name:
        parts.append(
            _examples(
                comparison,
                f"Most confidently wrong: {other}",
                f"Where {other} was surest and the label said otherwise, and what the others make of the same example.",
                confidently_wrong(predictions, reference, _EXAMPLES_SHOWN),
            )
        )
    parts.append(
        _examples(
            comparison,
            f"Most confidently wrong: {name}",
            f"What {name} gets wrong with confidence. Some of it may be label noise, which no model can foresee.",
            confidently_wrong(predictions, subject, _EXAMPLES_SHOWN),
        )
    )
    return "\n".join(parts)


def details_section(details: Sequence[tuple[str, object]]) -> str:
    """Write the caller's names and values.

    Args:
        details: Pairs; values are written as ``str`` writes them.

    Returns:
        A section; empty where there are none.
    """
    if not details:
        return ""
    lines = [
        f'<tr><td>{escape(str(name))}</td><td class="text" dir="auto">{escape(str(value))}</td></tr>'
        for name, value in details
    ]
    return "<h2>Details</h2>\n" + html_table("Details", "", lines, "details")


def _examples(comparison: Comparison, heading: str, note: str, shown: Sequence[Shown]) -> str:
    """Write one table of examples; columns that nothing is known of are left out."""
    if not shown:
        return f"<h2>{escape(heading)}</h2>\n<p class='note'>None.</p>"
    truth = any(example.truth is not None for example in shown)
    epistemic = any(example.epistemic is not None for example in shown)
    head = '<th>Text</th><th class="word">Label</th><th class="word">Predicted</th>'
    head += "".join(f"<th>{_method(comparison, name)}</th>" for name in comparison.methods)
    head += "<th>True p</th>" * truth + "<th>Epistemic (nats)</th>" * epistemic
    lines = []
    for example in shown:
        cells = [
            f'<td class="text" dir="auto">{_text(example.text)}</td>',
            f'<td class="word" dir="auto">{_text(example.label)}</td>',
            f'<td class="word" dir="auto">{_text(example.predicted)}</td>',
            *(f"<td>{example.probabilities[name]:.2f}</td>" for name in comparison.methods),
        ]
        cells += [f"<td>{_short(example.truth)}</td>"] * truth + [f"<td>{_short(example.epistemic)}</td>"] * epistemic
        lines.append(f"<tr>{''.join(cells)}</tr>")
    remark = "Probabilities are those of the predicted class."
    return f"<h2>{escape(heading)}</h2>\n<p class='note'>{escape(note)} {remark}</p>\n" + html_table(
        heading, head, lines, "texts"
    )


def _text(text: str) -> str:
    """Escape a text and cut it where it is long, saying so."""
    if len(text) <= _TEXT_SHOWN:
        return escape(text)
    left = len(text) - _TEXT_SHOWN
    return f'{escape(text[:_TEXT_SHOWN].rstrip())}<span class="cut"> … {left:,} more characters</span>'


def _grid(figures: Sequence[str]) -> str:
    """Lay figures side by side; one or two need not fill the whole width."""
    kind = {1: "figures few one", 2: "figures few"}.get(len(figures), "figures")
    return f'<div class="{kind}">\n' + "\n".join(figures) + "\n</div>"


def _short(value: float | None) -> str:
    """Write a number that may be unknown."""
    return "" if value is None else f"{value:.2f}"
