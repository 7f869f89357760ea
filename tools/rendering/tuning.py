"""The pages' tables of the quality benchmark: ways of choosing the prior, on test examples."""

import statistics
from collections.abc import Iterable
from typing import Any

from rendering.common import load, origin, table

#: Ways that stand in the tables of figures, in order.
SHOWN = (
    "map",
    "temperature (80 %)",
    "validation (80 %), global",
    "temperature, cross-fitted",
    "cross-fit, global",
    "evidence, global, zero",
    "evidence, global, start",
    "evidence, role, start",
    "auto, start",
)


def _adapters() -> dict[tuple[str, str], list[Any]]:
    """Results by case and checkpoint, one per seed."""
    found: dict[tuple[str, str], list[Any]] = {}
    for result in load("quality")["results"]:
        found.setdefault((result["case"], result["checkpoint"]), []).append(result)
    return found


def _over_seeds(results: Iterable[Any], method: str, figure: str) -> list[float]:
    found = [result["methods"][method] for result in results if method in result["methods"]]
    return [one[figure] for one in found if one[figure] is not None]


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def tuning_state() -> str:
    """How much of the benchmark has been run."""
    counts: dict[str, list[int]] = {}
    for result in load("quality")["results"]:
        counts.setdefault(result["case"], []).append(result["seed"])
    said = ", ".join(f"{case} {len(seeds)} ({len(set(seeds))} seeds)" for case, seeds in counts.items())
    return f"Adapters measured: {said}. Means over seeds, with their standard errors where there are several."


def tuning_nll() -> str:
    """The NLL of every way, by case and checkpoint."""
    rows = [
        [case, checkpoint, *(_mean(_over_seeds(results, method, "nll")) for method in SHOWN)]
        for (case, checkpoint), results in _adapters().items()
    ]
    return table(["case", "checkpoint", *SHOWN], rows) + f"\n\nMade by {origin(load('quality'))}"


def tuning_figures() -> str:
    """Accuracy, ECE over its floor, Brier score, AUROC and AURC of every way, averaged over adapters."""
    everything = load("quality")["results"]
    rows = []
    for method in SHOWN:
        having = [result for result in everything if method in result["methods"]]
        if not having:
            continue
        ratios = [one["ece"] / one["ece_floor"] for one in (result["methods"][method] for result in having)]
        names = ("accuracy", "brier", "auroc", "aurc")
        figures = [f"{statistics.fmean(_over_seeds(having, method, name)):.3f}" for name in names]
        within = sum(ratio <= 1.5 for ratio in ratios)
        over = [result["methods"][method].get("nll_over_rival") for result in having]
        worse = [one for one in over if one is not None]
        rival = f"{sum(one['low'] <= 0 for one in worse)} of {len(worse)}" if worse else ""
        rows.append([method, str(len(having)), *figures, f"{within} of {len(ratios)}", rival])
    rival = "NLL no worse than temperature (80 %)"
    head = ["way", "adapters", "accuracy", "Brier", "AUROC", "AURC", "ECE within 1.5 x floor", rival]
    return table(head, rows)


def tuning_harm() -> str:
    """The worst that each way has done."""
    everything = load("quality")["results"]
    rows = []
    for method in dict.fromkeys(name for result in everything for name in result["methods"]):
        having = [result for result in everything if method in result["methods"]]
        worst = max(having, key=lambda result: result["methods"][method]["nll_over_map"]["low"])
        lost = max(result["methods"][method]["accuracy_lost"]["low"] for result in having)
        where = f"{worst['case']}, {worst['checkpoint']}, seed {worst['seed']}"
        low = worst["methods"][method]["nll_over_map"]["low"]
        if method != "map":
            rows.append([method, str(len(having)), f"{low:+.4f}", where, f"{lost:+.4f}"])
    return table(["way", "adapters", "NLL", "there", "accuracy lost"], rows)


def tuning_few() -> str:
    """What forty examples do."""
    rows = []
    for (case, checkpoint), results in _adapters().items():
        for result in results:
            few = result["few_examples"]
            rows.append([case, checkpoint, str(result["seed"]), f"{few['mean']:+.4f}", f"{few['worst']:+.4f}"])
    return table(["case", "checkpoint", "seed", "mean", "worst"], rows)
