"""Tables in the paper's form: mean and standard deviation over seeds, the best in bold, with its ties."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from laplace_lora.bench.costs import STAGES
from laplace_lora.bench.grids import Cell, Grid, markdown
from laplace_lora.bench.lines import COSTS, at_the_end

Line = dict[str, Any]
#: Methods that are errors on purpose, and never marked as the best.
ERRORS = ("softmax_twice",)
_MIB = 2.0**20


class Metric(NamedTuple):
    """A figure of a result.

    Attributes:
        name: Its name in a line.
        title: What tables call it.
        scale: What it is multiplied by.
        digits: After the point.
        more_is_better: Which direction is good.
    """

    name: str
    title: str
    scale: float
    digits: int
    more_is_better: bool

    def written(self, value: float) -> str:
        """Write a figure."""
        return f"{self.scale * value:.{self.digits}f}"


METRICS = (
    Metric("accuracy", "Accuracy (%)", 100.0, 1, True),
    Metric("ece", "ECE (%), 15 bins", 100.0, 1, False),
    Metric("nll", "NLL (nats)", 1.0, 3, False),
    Metric("brier", "Brier score", 1.0, 3, False),
    Metric("auroc", "AUROC of being right", 1.0, 3, True),
    Metric("aurc", "AURC", 1.0, 3, False),
)
_DETECTION = Metric("auroc", "", 1.0, 3, True), Metric("fpr95", "", 1.0, 3, False)
#: What tells other data apart, as results name it and as tables do.
SCORES = {"confidence": "max probability", "entropy": "entropy", "mutual_information": "mutual information"}


def metric_grid(lines: Iterable[Line], metric: Metric) -> Grid:
    """Collect one metric of all methods on all tasks.

    The best of a column is in bold, and with it every method whose mean difference from it, paired by seed, is at most
    one standard error of that difference. Deliberate errors are never marked.

    Args:
        lines: Of results.jsonl.
        metric: Which.

    Returns:
        The table; a cell is empty where a method was not measured.
    """
    chosen = at_the_end(lines)
    figures = ((line, line["task"], figure_of(line["figures"], metric)) for line in chosen)
    return _grid(metric.title, chosen, list(dict.fromkeys(line["task"] for line in chosen)), figures, metric)


def metric_grids(lines: Iterable[Line], metrics: Sequence[Metric] = METRICS) -> list[Grid]:
    """Collect metrics of all methods: a table per metric, or one in all where there is one task.

    Args:
        lines: Of results.jsonl.
        metrics: Which.

    Returns:
        Tables whose columns are tasks; or one of the task's name, whose columns are the metrics.
    """
    chosen = at_the_end(lines)
    grids = [metric_grid(chosen, metric) for metric in metrics]
    tasks = list(dict.fromkeys(line["task"] for line in chosen))
    if len(tasks) != 1:
        return grids
    found = [dict(grid.rows) for grid in grids]
    rows = [(name, [cells.get(name, [Cell()])[0] for cells in found]) for name in _titles(chosen).values()]
    return [Grid(tasks[0], ["method", *(metric.title for metric in metrics)], rows)]


def figure_of(figures: Mapping[str, float | None], metric: Metric) -> float | None:
    """Return a figure of a result.

    Args:
        figures: Of a line.
        metric: Which.

    Returns:
        The figure; infinite for an NLL of labels that have no probability, which JSON has no number for; None where
        it is not defined.
    """
    value = figures.get(metric.name)
    return math.inf if value is None and metric.name == "nll" and figures.get("impossible") else value


def outside_grids(lines: Iterable[Line]) -> list[Grid]:
    """Collect how well other data are told from the tasks': AUROC, and FPR at 95 % acceptance, by three scores.

    Args:
        lines: Of results.jsonl.

    Returns:
        One table per task, rate and score; none where there are no other data.
    """
    found = []
    chosen = [line for line in at_the_end(lines) if line["ood"]]
    for task in dict.fromkeys(line["task"] for line in chosen):
        of_task = [line for line in chosen if line["task"] == task]
        sets = list(dict.fromkeys(name for line in of_task for name in line["ood"]))
        for metric in _DETECTION:
            for score, shown in SCORES.items():
                figures = (
                    (line, name, other["detection"].get(score, {}).get(metric.name))
                    for line in of_task
                    for name, other in line["ood"].items()
                )
                if not any(score in other["detection"] for line in of_task for other in line["ood"].values()):
                    continue
                title = f"{metric.name.upper()} of telling other data from {task}, by {shown}"
                found.append(_grid(title, of_task, sets, figures, metric))
    return found


def shifted_grids(lines: Iterable[Line]) -> list[Grid]:
    """Collect the metrics on other data whose labels fit the task: the paper's tables out of distribution.

    Args:
        lines: Of results.jsonl.

    Returns:
        One table per task and metric.
    """
    found = []
    chosen = [line for line in at_the_end(lines) if any("figures" in other for other in line["ood"].values())]
    for task in dict.fromkeys(line["task"] for line in chosen):
        of_task = [line for line in chosen if line["task"] == task]
        sets = list(
            dict.fromkeys(name for line in of_task for name, other in line["ood"].items() if "figures" in other)
        )
        for metric in METRICS[:3]:
            figures = (
                (line, name, figure_of(other.get("figures", {}), metric))
                for line in of_task
                for name, other in line["ood"].items()
            )
            found.append(_grid(f"{metric.title} of adapters trained on {task}", of_task, sets, figures, metric))
    return found


def cost_grid(lines: Iterable[Line]) -> Grid:
    """Collect what methods cost, mean over tasks and seeds: those that all methods were measured on, if there are any.

    Args:
        lines: Of results.jsonl.

    Returns:
        Seconds per row (of training rows for training, fit and tuning; of test rows for prediction), the same in
        forward passes of one row, all stages together, memory and bytes.
    """
    chosen = at_the_end(lines)
    runs = [{_run(line) for line in chosen if line["method"] == method} for method in _titles(chosen)]
    shared = set.intersection(*runs) if runs else set()
    title = "What methods cost"
    if shared and shared != {_run(line) for line in chosen}:
        chosen = [line for line in chosen if _run(line) in shared]
        title += f", on what all were measured on: {', '.join(dict.fromkeys(line['task'] for line in chosen))}"
    elif not shared:
        title += ", each on tasks of its own: rows are not comparable"
    columns = ["method"]
    columns += [f"{stage}, s per row" for stage in STAGES] + [f"{stage}, forward passes per row" for stage in STAGES]
    columns += ["all, forward passes", "peak memory, MiB", "stored, MiB"]
    rows = []
    for method, name in _titles(chosen).items():
        of_method = [line for line in chosen if line["method"] == method]
        cells = [Cell(_short(_mean(per_row(line, stage, "seconds") for line in of_method))) for stage in STAGES]
        cells += [Cell(_short(_mean(per_row(line, stage, "forward_passes") for line in of_method))) for stage in STAGES]
        cells.append(Cell(_short(_mean(sum(line[COSTS]["forward_passes"].values()) for line in of_method))))
        cells.append(Cell(_short(_mean(line[COSTS]["peak_memory_bytes"] / _MIB for line in of_method))))
        cells.append(Cell(_short(_mean(line["stored_bytes"] / _MIB for line in of_method))))
        rows.append((name, cells))
    return Grid(title, columns, rows)


def _run(line: Line) -> tuple[str, int]:
    return line["task"], line["seed"]


def per_row(line: Line, stage: str, unit: str) -> float:
    """Return what a stage took per row.

    Args:
        line: Of results.jsonl.
        stage: ``train``, ``fit``, ``tune`` or ``predict``.
        unit: ``seconds`` or ``forward_passes``.

    Returns:
        Per test row for prediction, per training row for the rest.
    """
    spent: float = line[COSTS][unit].get(stage, 0.0)
    return spent / line["rows"]["test" if stage == "predict" else "train"]


def summary(lines: Sequence[Line]) -> str:
    """Write what a terminal shows at the end: accuracy, ECE and NLL.

    Args:
        lines: Of results.jsonl.

    Returns:
        Three tables, or one of one task.
    """
    return "\n\n".join(f"{grid.title}\n\n{markdown(grid)}" for grid in metric_grids(lines, METRICS[:3]))


def best(column: Mapping[str, Mapping[int, float]], metric: Metric) -> set[str]:
    """Choose the best method of a column, and those tied with it.

    Args:
        column: Figures by method and seed.
        metric: What is compared.

    Returns:
        Their names; of methods that have all seeds of the column, and finite figures.
    """
    seeds = {seed for found in column.values() for seed in found}
    rivals = {
        name: found
        for name, found in column.items()
        if name not in ERRORS and set(found) == seeds and all(map(math.isfinite, found.values()))
    }
    if not rivals:
        return set()
    sign = -1.0 if metric.more_is_better else 1.0
    first = min(rivals, key=lambda name: sign * statistics.fmean(rivals[name].values()))
    return {name for name, found in rivals.items() if _tied(found, rivals[first])}


def _tied(one: Mapping[int, float], other: Mapping[int, float]) -> bool:
    gaps = [one[seed] - other[seed] for seed in sorted(one)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return abs(statistics.fmean(gaps)) <= error


def _grid(
    title: str,
    lines: Sequence[Line],
    columns: Sequence[str],
    figures: Iterable[tuple[Line, str, float | None]],
    metric: Metric,
) -> Grid:
    """Lay figures out: each with its line and column, and None where there is none."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for line, column, figure in figures:
        if figure is not None:
            values.setdefault((line["method"], column), {})[line["seed"]] = figure
    marked, counts = set(), dict[str, int]()
    for column in columns:
        counts[column] = len({seed for (_, c), found in values.items() if c == column for seed in found})
        marked |= {(m, column) for m in best({m: v for (m, c), v in values.items() if c == column}, metric)}
    rows = []
    for method, name in _titles(lines).items():
        cells = []
        for column in columns:
            found = values.get((method, column))
            cells.append(Cell() if found is None else _cell(found, (method, column) in marked, metric, counts[column]))
        if any(cell.mean for cell in cells):
            rows.append((name, cells))
    return Grid(title, ["method", *columns], rows)


def _cell(values: Mapping[int, float], marked: bool, metric: Metric, seeds: int) -> Cell:
    if not all(map(math.isfinite, values.values())):
        return Cell("infinite")
    deviation = metric.written(statistics.stdev(values.values())) if len(values) > 1 else ""
    note = "" if len(values) == seeds else f"{len(values)} of {seeds} seeds"
    return Cell(metric.written(statistics.fmean(values.values())), deviation, marked, note)


def _titles(lines: Iterable[Line]) -> dict[str, str]:
    return {line["method"]: line["title"] for line in lines}


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def _short(value: float) -> str:
    """Write three digits that count."""
    return "0" if value == 0.0 else f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
