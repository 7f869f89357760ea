"""report.html of a benchmark: tables, reliability, risk and coverage, figures along the training, and costs."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from laplace_lora.bench.along import along_figures
from laplace_lora.bench.grids import html
from laplace_lora.bench.lines import at_the_end, kind_of_warning
from laplace_lora.bench.notes import notes
from laplace_lora.bench.tables import ERRORS, Line, cost_grid, metric_grids, outside_grids, shifted_grids
from laplace_lora.evaluation import OUTPUTS_FILE, Probabilities, load_outputs, metrics, selective
from laplace_lora.evaluation.metrics import IntArray
from laplace_lora.evaluation.plain_report import page_head
from laplace_lora.evaluation.svg import lowest_shown, reliability_svg
from laplace_lora.evaluation.svg_curves import risk_coverage_svg

#: Colours of the page's style.
COLOURS = 8


class Pooled(NamedTuple):
    """Predictions of adapters of several seeds on the same rows, one adapter after the other.

    Attributes:
        values: (S N, K) probabilities.
        labels: (S N,) class indices.
        seeds: S.
    """

    values: Probabilities
    labels: IntArray
    seeds: int


def render(lines: Sequence[Line], results: Path, about: Mapping[str, Any]) -> str:
    """Write the page.

    Args:
        lines: Of results.jsonl.
        results: Folder of the cache's results, which have the probabilities.
        about: Names and values that close the page.

    Returns:
        A whole HTML document.
    """
    last = at_the_end(lines)
    bases = ", ".join(dict.fromkeys(Path(line["base"]).name for line in last))
    title = f"Methods on {bases}"
    tables = "\n".join(map(_section, metric_grids(last)))
    drawings = "\n".join(_drawings(task, last, results) for task in dict.fromkeys(line["task"] for line in last))
    other = [*shifted_grids(last), *outside_grids(last)]
    closing = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>" for k, v in about.items())
    return f"""{page_head(title)}
<main>
<p class="kicker">laplace-lora bench</p>
<h1>{escape(title)}</h1>
<p class="note">{escape(" ".join(notes(last)))}</p>
{tables}
{_warnings(lines)}
<h2>Does it know how sure it may be?</h2>
<p class="note">Predictions of all seeds, sorted by confidence. A calibrated method is right as often as it says: its
dots lie on the dashed line, or mostly within the grey boxes, where 95 % of perfectly calibrated models would land whose
seeds are right on the same rows. ECE here is that of all seeds together, and not the mean of the tables; the floor is
what a calibrated method would show on so few rows. Bars of few rows reach far. In risk-coverage curves a method answers
only where it is surest: the area below is AURC.</p>
{drawings}
{along_figures(lines)}
<h2>Other data</h2>
{"".join(_section(grid) for grid in other) if other else "<p class='note'>None were given.</p>"}
<h2>What it costs</h2>
<p class="note">Training, fit and tuning per training row, prediction per test row; a forward pass is that of one row,
timed in the same process just before. Memory is what a method's fit and predictions took beyond what was there.</p>
{_section(cost_grid(last))}
<h2>How it was made</h2>
<div class="scroll"><table class="details"><tbody>{closing}</tbody></table></div>
</main>
</body>
</html>
"""


def _warnings(lines: Sequence[Line]) -> str:
    """List what methods warned of, each once with the number of results."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        for message in line["warnings"]:
            found.setdefault((line["title"], kind_of_warning(message)), []).append(message)
    items = "".join(
        f"<li>{escape(title)}, {len(said)} of the results: {escape(said[0])}</li>" for (title, _), said in found.items()
    )
    return f"<h2>What methods warned of</h2>\n<ul>{items}</ul>" if found else ""


def _section(grid: Any) -> str:
    return f"<h3>{escape(grid.title)}</h3>\n{html(grid)}"


def _drawings(task: str, lines: Sequence[Line], results: Path) -> str:
    """Draw every method's reliability on a task, and the curves of risk and coverage of all but deliberate errors."""
    of_task = [line for line in lines if line["task"] == task]
    pooled = {
        line["method"]: _pooled([other for other in of_task if other["method"] == line["method"]], results)
        for line in of_task
    }
    titles = {line["method"]: line["title"] for line in of_task}
    drawn = [name for name in pooled if name not in ERRORS]
    classes = {titles[name]: f"c{index % (COLOURS - 1)}" for index, name in enumerate(drawn)}
    # A drawing has no more lines than there are colours.
    groups = [drawn[start : start + COLOURS - 1] for start in range(0, len(drawn), COLOURS - 1)]
    figures = "\n".join(
        _reliability(titles[name], value, classes.get(titles[name], f"c{COLOURS - 1}"))
        for name, value in pooled.items()
    )
    curves = "\n".join(
        _curves(
            task,
            {titles[name]: pooled[name] for name in group},
            {titles[name]: classes[titles[name]] for name in group},
        )
        for group in groups
    )
    return f'<h3>{escape(task)}</h3>\n<div class="figures">{figures}</div>\n{curves}'


def _curves(task: str, pooled: Mapping[str, Pooled], classes: Mapping[str, str]) -> str:
    curves = {title: selective.risk_coverage(values.values, labels) for title, (values, labels, _) in pooled.items()}
    keys = "".join(f'<span class="key"><i class="{css}"></i>{escape(name)}</span>' for name, css in classes.items())
    picture = risk_coverage_svg(curves, classes, escape(f"Risk-coverage curves on {task}", quote=True))
    return f'<figure class="wide"><div class="legend">{keys}</div>{picture}</figure>'


def _pooled(lines: Sequence[Line], results: Path) -> Pooled:
    """Put the predictions of all seeds one below the other."""
    found = [load_outputs(results / line["key"] / OUTPUTS_FILE).data for line in lines]
    name = lines[0]["method"]
    widest = max(outputs.probabilities[name].values.shape[1] for outputs in found)
    values = np.concatenate([outputs.probabilities[name].widened(widest).values for outputs in found])
    labels = [outputs.labels for outputs in found if outputs.labels is not None]
    return Pooled(Probabilities(values), np.concatenate(labels), len(found))


def _reliability(title: str, pooled: Pooled, css_class: str) -> str:
    values, labels, seeds = pooled
    summary = (
        f"ECE {100 * metrics.ece(values, labels):.1f} %, floor {100 * metrics.ece_floor(values, models=seeds):.1f} %"
    )
    picture = reliability_svg(
        metrics.reliability(values, labels),
        metrics.calibrated_band(values, models=seeds),
        escape(f"Reliability diagram of {title}: {summary}.", quote=True),
        css_class,
        lowest_shown(values.values.shape[1]),
    )
    return f"<figure><figcaption><b>{escape(title)}</b><span>{summary}, all seeds</span></figcaption>{picture}</figure>"
