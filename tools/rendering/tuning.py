"""The pages' tables of the quality benchmark: ways of choosing the prior, on test examples."""

import statistics
from collections.abc import Iterable, Sequence
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
    "temperature, chosen on test",
    "both, chosen on test",
)
#: Ways of the exact GGN and of the refitted model.
REFIT = (
    "map",
    "trained, evidence, start",
    "refit, evidence, start",
    "refit, evidence, role, start",
    "refit, leaving one out, start",
    "trained, cross-fitted",
    "refit, cross-fitted",
    "better of both, cross-fitted",
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


def _mean(values: list[float], signed: bool = False) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{'+' if signed else ''}.3f}{spread}"


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
    """What every way changes over the trained adapter on the same adapters, and how often bars are met."""
    everything = load("quality")["results"]
    names = ("accuracy", "nll", "ece", "brier", "auroc", "aurc")
    rows = []
    for method in SHOWN[1:]:
        having = [result["methods"] for result in everything if method in result["methods"]]
        if not having:
            continue
        changes = [_mean(_changes(having, method, name), signed=True) for name in names]
        rows.append([method, str(len(having)), *changes, _within(having, method), _no_worse(having, method)])
    head = ["way", "adapters", "accuracy", "NLL", "ECE", "Brier", "AUROC", "AURC", "ECE within 1.5 x floor"]
    return table([*head, "NLL no worse than temperature (80 %)"], rows)


def _within(having: Sequence[Any], method: str) -> str:
    """Count the adapters on which the ECE is within 1.5 times its floor."""
    within = sum(methods[method]["ece"] <= 1.5 * methods[method]["ece_floor"] for methods in having)
    return f"{within} of {len(having)}"


def _no_worse(having: Iterable[Any], method: str) -> str:
    """Count the adapters on which the paired interval of the NLL over the rival's reaches 0."""
    intervals = [one for one in (methods[method].get("nll_over_rival") for methods in having) if one is not None]
    return f"{sum(one['low'] <= 0 for one in intervals)} of {len(intervals)}" if intervals else ""


def _changes(having: Iterable[Any], method: str, figure: str) -> list[float]:
    pairs = [(methods[method][figure], methods["map"][figure]) for methods in having]
    return [one - other for one, other in pairs if one is not None and other is not None]


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
        if method != "map" and not method.endswith("chosen on test"):
            rows.append([method, str(len(having)), f"{low:+.4f}", where, f"{lost:+.4f}"])
    return table(["way", "adapters", "NLL", "there", "accuracy lost"], rows)


def tuning_answers() -> str:
    """Of more than two classes: ``auto`` with its variance spread evenly, and as it is."""
    ways = ("auto, start", "auto, start, variances as they are")
    rows = []
    for result in load("quality")["results"]:
        if ways[1] not in result["methods"]:
            continue
        found = [result["methods"][name] for name in ("map", *ways)]
        cells = [f"{one[figure]:.3f}" for figure in ("accuracy", "nll", "ece", "auroc") for one in found]
        rows.append([result["case"], result["checkpoint"], str(result["seed"]), *cells])
    names = [
        f"{figure}, {way}" for figure in ("accuracy", "NLL", "ECE", "AUROC") for way in ("map", "evenly", "as they are")
    ]
    return table(["case", "checkpoint", "seed", *names], rows)


def tuning_few() -> str:
    """What forty examples do."""
    rows = []
    for (case, checkpoint), results in _adapters().items():
        for result in results:
            few = result["few_examples"]
            rows.append([case, checkpoint, str(result["seed"]), f"{few['mean']:+.4f}", f"{few['worst']:+.4f}"])
    return table(["case", "checkpoint", "seed", "mean", "worst"], rows)


def tuning_refit() -> str:
    """The refitted linearised model beside the trained adapter: NLL and accuracy."""
    document = load("refit")
    shown = [name for name in REFIT if any(name in result["methods"] for result in document["results"])]
    rows = []
    for result in document["results"]:
        found = [result["methods"].get(name) for name in shown]
        cells = [f"{one['nll']:.3f} ({100 * one['accuracy']:.0f})" if one else "" for one in found]
        rows.append([result["case"], result["checkpoint"], str(result["seed"]), *cells])
    error = max(result["left_out_error"] for result in document["results"])
    said = f"NLL, and accuracy in percent. Leaving one out by formula is off by at most {error:.1e} logits."
    return f"{table(['case', 'checkpoint', 'seed', *shown], rows)}\n\n{said}\n\nMade by {origin(document)}"


def tuning_refit_ece() -> str:
    """How often each of these ways meets the bar of the ECE, and its ranking."""
    results = load("refit")["results"]
    rows = []
    for method in REFIT:
        having = [result["methods"] for result in results if method in result["methods"]]
        if having:
            names = ("nll", "accuracy", "auroc", "aurc")
            changes = [_mean(_changes(having, method, name), signed=True) for name in names]
            rows.append([method, *changes, _within(having, method), _no_worse(having, method)])
    head = ["way", "NLL", "accuracy", "AUROC", "AURC", "ECE within 1.5 x floor"]
    return table([*head, "NLL no worse than temperature (80 %)"], rows)
