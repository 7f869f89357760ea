"""Tables in the paper's form: mean and standard deviation over seeds, the best in bold, with its ties."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from laplace_lora.bench.lines import at_the_end

Line = dict[str, Any]


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


METRICS = (
    Metric("accuracy", "ACC (%)", 100.0, 1, True),
    Metric("ece", "ECE (%)", 100.0, 1, False),
    Metric("nll", "NLL (nats)", 1.0, 3, False),
    Metric("brier", "Brier", 1.0, 3, False),
    Metric("auroc", "AUROC of being right", 1.0, 3, True),
    Metric("aurc", "AURC", 1.0, 3, False),
)


class Entry(NamedTuple):
    """A figure over seeds.

    Attributes:
        values: By seed.
        best: Whether it is the best of its column, or tied with it.
    """

    values: dict[int, float]
    best: bool

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds; None of one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


class Table(NamedTuple):
    """One metric of all methods on all tasks.

    Attributes:
        metric: Which.
        tasks: Columns.
        titles: Of the rows, by method.
        entries: By method and task; nothing where a method was not measured, or the figure does not exist.
    """

    metric: Metric
    tasks: list[str]
    titles: dict[str, str]
    entries: dict[tuple[str, str], Entry]


def table(lines: Iterable[Line], metric: Metric) -> Table:
    """Collect one metric.

    The best of a column is in bold, and with it every method whose mean difference from it, paired by seed, is at most
    one standard error of that difference. The deliberate error is never marked.

    Args:
        lines: Of results.jsonl.
        metric: Which.

    Returns:
        The table.
    """
    chosen = at_the_end(lines)
    tasks = list(dict.fromkeys(line["task"] for line in chosen))
    titles = {line["method"]: line["title"] for line in chosen}
    values: dict[tuple[str, str], dict[int, float]] = {}
    for line in chosen:
        value = line["figures"][metric.name]
        if value is not None:
            values.setdefault((line["method"], line["task"]), {})[line["seed"]] = value
    marked = set()
    for task in tasks:
        marked |= {(method, task) for method in best({m: v for (m, t), v in values.items() if t == task}, metric)}
    return Table(metric, tasks, titles, {key: Entry(found, key in marked) for key, found in values.items()})


def best(column: dict[str, dict[int, float]], metric: Metric, never: Sequence[str] = ("softmax_twice",)) -> set[str]:
    """Choose the best method of a column, and those tied with it.

    Args:
        column: Figures by method and seed.
        metric: What is compared.
        never: Methods that are no rivals.

    Returns:
        Their names; of methods with all seeds of the column.
    """
    seeds = set().union(*(set(found) for found in column.values())) if column else set()
    rivals = {name: found for name, found in column.items() if name not in never and set(found) == seeds}
    if not rivals:
        return set()
    sign = -1.0 if metric.more_is_better else 1.0
    first = min(rivals, key=lambda name: sign * statistics.fmean(rivals[name].values()))
    return {name for name, found in rivals.items() if _tied(found, rivals[first], seeds)}


def _tied(one: dict[int, float], other: dict[int, float], seeds: set[int]) -> bool:
    gaps = [one[seed] - other[seed] for seed in sorted(seeds)]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return abs(statistics.fmean(gaps)) <= error or not any(gaps)


def markdown(found: Table) -> str:
    """Write a table for Markdown.

    Args:
        found: The table.

    Returns:
        Its lines.
    """
    rows = [["method", *found.tasks]]
    rows += [[title, *_cells(found, method, _markdown)] for method, title in found.titles.items()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def latex(found: Table) -> str:
    """Write a table for LaTeX, with the rules of the package booktabs.

    Args:
        found: The table.

    Returns:
        A ``tabular``.
    """
    head = " & ".join(["Method", *(_escaped(task) for task in found.tasks)])
    rows = [
        " & ".join([_escaped(title), *_cells(found, method, _latex)]) + r" \\" for method, title in found.titles.items()
    ]
    begin = r"\begin{tabular}{l" + "c" * len(found.tasks) + "}"
    return "\n".join([begin, r"\toprule", head + r" \\", r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"])


def summary(lines: Sequence[Line]) -> str:
    """Write what a terminal shows at the end: accuracy, ECE and NLL.

    Args:
        lines: Of results.jsonl.

    Returns:
        Three tables.
    """
    return "\n\n".join(f"{metric.title}\n\n{markdown(table(lines, metric))}" for metric in METRICS[:3])


def _cells(found: Table, method: str, write: Callable[[Metric, Entry], str]) -> list[str]:
    entries = [found.entries.get((method, task)) for task in found.tasks]
    return ["" if entry is None else write(found.metric, entry) for entry in entries]


def _numbers(metric: Metric, entry: Entry) -> tuple[str, str]:
    mean = f"{metric.scale * entry.mean:.{metric.digits}f}"
    return mean, "" if entry.deviation is None else f"{metric.scale * entry.deviation:.{metric.digits}f}"


def _markdown(metric: Metric, entry: Entry) -> str:
    mean, deviation = _numbers(metric, entry)
    text = mean if not deviation else f"{mean} ± {deviation}"
    return f"**{text}**" if entry.best else text


def _latex(metric: Metric, entry: Entry) -> str:
    mean, deviation = _numbers(metric, entry)
    shown = rf"\mathbf{{{mean}}}" if entry.best else mean
    return f"${shown}$" if not deviation else rf"${shown}_{{\pm {deviation}}}$"


def _escaped(text: str) -> str:
    for plain, written in (("\\", r"\textbackslash{}"), ("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#")):
        text = text.replace(plain, written)
    return text
