"""The report: one HTML file that needs nothing but itself, from the verdict down to single examples."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from string import Template

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import report_sections as sections
from laplace_lora.evaluation.comparison import Comparison
from laplace_lora.evaluation.examples import Predictions
from laplace_lora.evaluation.ood import OutOfDistribution
from laplace_lora.evaluation.side_by_side import Line
from laplace_lora.evaluation.verdict import verdict_parts
from laplace_lora.evaluation.whole import write_whole


def write_report(
    path: str | os.PathLike[str],
    comparison: Comparison,
    predictions: Predictions,
    *,
    title: str = "Laplace-LoRA report",
    subtitle: str = "",
    footer: str = "",
    out_of_distribution: Mapping[str, OutOfDistribution] | None = None,
    data_sets: Sequence[Line] = (),
    details: Sequence[tuple[str, object]] = (),
) -> pathlib.Path:
    """Write the report, whole or not at all.

    Args:
        path: Where to; its folder is made where it is missing.
        comparison: The scores of all methods.
        predictions: What they predicted.
        title: Heading of the page.
        subtitle: A sentence on model and data, below the verdict.
        footer: A closing remark, such as the command that made the report.
        out_of_distribution: Detection of outside data sets, by the name of the data set.
        data_sets: Methods on every data set, the one compared first.
        details: Names and values for a closing table: prior precision, seconds, versions, data files.

    Returns:
        The path.
    """
    text = render(
        comparison,
        predictions,
        title=title,
        subtitle=subtitle,
        footer=footer,
        out_of_distribution=out_of_distribution,
        data_sets=data_sets,
        details=details,
    )
    return write_whole(path, text.encode())


def render(
    comparison: Comparison,
    predictions: Predictions,
    *,
    title: str = "Laplace-LoRA report",
    subtitle: str = "",
    footer: str = "",
    out_of_distribution: Mapping[str, OutOfDistribution] | None = None,
    data_sets: Sequence[Line] = (),
    details: Sequence[tuple[str, object]] = (),
) -> str:
    """Make the page; every text that comes from outside is escaped.

    Args:
        comparison: The scores of all methods.
        predictions: What they predicted.
        title: Heading of the page.
        subtitle: A sentence on model and data.
        footer: A closing remark.
        out_of_distribution: Detection of outside data sets, by name.
        data_sets: Methods on every data set, the one compared first.
        details: Names and values for a closing table.

    Returns:
        HTML without any outside resource or script.

    Raises:
        LaplaceLoRAError: Comparison and predictions are not of the same methods and examples.
    """
    if list(predictions.methods) != list(comparison.methods) or len(predictions.labels) != comparison.n:
        raise LaplaceLoRAError(
            f"the comparison is of {', '.join(comparison.methods)} on {comparison.n} examples, the predictions are of "
            f"{', '.join(predictions.methods)} on {len(predictions.labels)}; make both from the same arrays."
        )
    verdict = verdict_parts(comparison)
    template = resources.files(__package__).joinpath("report_template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        footer=escape(footer),
        headline=escape(verdict.headline),
        # A number and its per cent sign belong on one line.
        numbers=escape(verdict.details[0].upper() + verdict.details[1:]).replace(" %", "&nbsp;%"),
        n=f"{comparison.n:,}",
        reliability=sections.reliability_figures(comparison, predictions),
        histograms=sections.histogram_figures(predictions, comparison),
        metrics=sections.metric_table(comparison),
        data_sets=sections.data_sets_section(data_sets),
        differences=sections.difference_section(comparison),
        risk_coverage=sections.risk_coverage_figure(comparison, predictions),
        out_of_distribution=sections.out_of_distribution_section(comparison, out_of_distribution or {}),
        examples=sections.example_sections(comparison, predictions),
        details=sections.details_section(details),
    )
