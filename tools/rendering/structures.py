"""The pages' tables of posterior structures, of posteriors over some layers, and of other data."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rendering.common import load, origin, ratio, table

TUNERS = ("evidence", "auto", "validation")


def structures_state() -> str:
    """Which adapters were measured."""
    found = load("structures")["results"]
    said = ", ".join(f"{one['case']} ({one['checkpoint']}, seed {one['seed']})" for one in found)
    return f"{len(found)} adapters: {said}."


def structures_distance() -> str:
    """How far the functional covariance of every structure is from the exact GGN's."""
    head = [
        "structure",
        "bytes",
        "variance, δ=1",
        "variance, δ=10",
        "variance, auto",
        "one example, auto",
        "distance, auto",
    ]
    return table(head, _distances("structures")) + f"\n\nMade by {origin(load('structures'))}"


def selections_distance() -> str:
    """The same of posteriors over some of the layers."""
    head = [
        "posterior over",
        "bytes",
        "variance, δ=1",
        "variance, δ=10",
        "variance, auto",
        "one example, auto",
        "distance, auto",
    ]
    return table(head, _distances("selections"))


def structures_quality() -> str:
    """What every structure changes over the trained adapter, by the tuner."""
    return _quality("structures", "structure")


def selections_quality() -> str:
    """The same of posteriors over some of the layers."""
    return _quality("selections", "posterior over")


def structures_each() -> str:
    """The NLL of every structure on every adapter, at the precision of auto."""
    results = load("structures")["results"]
    names = _names(results, "structures")
    rows = []
    for one in results:
        cells = [
            f"{one['structures'][n]['tuners']['auto']['nll']:.3f}" if n in one["structures"] else "" for n in names
        ]
        rows.append([one["case"], str(one["seed"]), one["checkpoint"], f"{one['map']['nll']:.3f}", *cells])
    return table(["case", "seed", "checkpoint", "map", *names], rows)


def structure_costs() -> str:
    """Fit and predict in forward passes."""
    document = load("structure_costs")
    results = document["results"]
    names = [key.removeprefix("predict, ") for key in results[0]["ratios"] if key.startswith("predict, ")]
    rows = []
    for name in names:
        cells = []
        for result in results:
            ratios = result["ratios"]
            cells += [ratio(ratios[key]) if (key := f"{verb}, {name}") in ratios else "" for verb in ("fit", "predict")]
        rows.append([name, *cells])
    rows.insert(0, ["1 F + (K-1) B", *(cell for one in results for cell in ("", ratio(one["ratios"]["passes"])))])
    head = [f"{verb}, K={result['classes']}" for result in results for verb in ("fit", "predict")]
    return table(["structure", *head], rows) + f"\n\nMade by {origin(document)}"


def top_layers() -> str:
    """Predictions of posteriors over the top layers, beside what their passes come to."""
    results = load("structure_costs")["results"]
    rows = []
    for position, one in enumerate(results[0]["top_layers"]):
        each = [result["top_layers"][position] for result in results]
        cells = [f"{found[key]:.2f}" for found in each for key in ("predict", "expected")]
        rows.append([str(one["layers"]), *cells])
    head = [f"{name}, K={result['classes']}" for result in results for name in ("measured", "1 F + (K-1) m/L B")]
    return table(["top layers m", *head], rows)


def ood() -> str:
    """AUROC of telling other data, by score."""
    document = load("ood")
    scores = (
        ("map", "confidence"),
        ("map", "entropy"),
        *(
            (f"{structure}, {way}", by)
            for structure in ("kron", "exact")
            for way in ("auto", "evidence")
            for by in ("entropy", "mutual_information")
        ),
    )
    rows = []
    for one in document["results"]:
        for name, found in one["outside"].items():
            cells = [_interval(found["methods"][method][by]["auroc"]) for method, by in scores]
            rows.append([one["case"], str(one["seed"]), one["checkpoint"], name, *cells])
    head = [f"{method}: {by.replace('_', ' ')}" for method, by in scores]
    return table(["trained on", "seed", "checkpoint", "other data", *head], rows) + f"\n\nMade by {origin(document)}"


def ood_summary() -> str:
    """Mean AUROC over adapters and other data, and how often a score is better than the trained adapter's entropy."""
    everything = [found["methods"] for one in load("ood")["results"] for found in one["outside"].values()]
    rows = []
    for method in everything[0]:
        for by in everything[0][method]:
            values = [each[method][by]["auroc"]["estimate"] for each in everything]
            better = sum(
                each[method][by]["auroc"]["low"] > each["map"]["entropy"]["auroc"]["high"] for each in everything
            )
            worse = sum(
                each[method][by]["auroc"]["high"] < each["map"]["entropy"]["auroc"]["low"] for each in everything
            )
            rows.append([method, by.replace("_", " "), _mean(values), f"{better} / {worse} of {len(values)}"])
    return table(["method", "score", "mean AUROC", "clearly better / worse than the trained adapter's entropy"], rows)


def _interval(value: Any) -> str:
    return f"{value['estimate']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _names(results: Iterable[Any], kind: str) -> list[str]:
    return list(dict.fromkeys(name for one in results for name in one[kind]))


def _distances(kind: str) -> list[list[str]]:
    results = load("structures")["results"]
    rows = []
    for name in _names(results, kind):
        having = [one[kind][name] for one in results if name in one[kind]]
        cells = [_spread([one["distance"][delta]["variance"] for one in having]) for delta in ("1", "10", "auto")]
        auto = [one["distance"]["auto"] for one in having]
        extremes = f"{min(one['lowest'] for one in auto):.2f} to {max(one['highest'] for one in auto):.2f}"
        apart = f"{statistics.fmean(one['frobenius'] for one in auto):.2f}"
        sizes = [one["bytes"] for one in having]
        rows.append([name, _bytes(sizes), *cells, extremes, apart])
    return rows


def _quality(kind: str, first: str) -> str:
    results = load("structures")["results"]
    rows = []
    for name in _names(results, kind):
        having = [(one[kind][name]["tuners"], one["map"]) for one in results if name in one[kind]]
        cells = [str(len(having))]
        for figure in ("nll", "ece"):
            cells += [_change(having, tuner, figure) for tuner in TUNERS]
        cells += [_change(having, "auto", figure) for figure in ("accuracy", "auroc", "aurc")]
        rows.append([name, *cells])
    head = [f"{figure}, {tuner}" for figure in ("NLL", "ECE") for tuner in TUNERS]
    return table([first, "adapters", *head, "accuracy, auto", "AUROC, auto", "AURC, auto"], rows)


def _change(having: Sequence[Any], tuner: str, figure: str) -> str:
    pairs = [(tuners[tuner][figure], plain[figure]) for tuners, plain in having]
    return _mean([one - other for one, other in pairs if one is not None and other is not None], signed=True)


def _mean(values: Sequence[float], signed: bool = False) -> str:
    spread = f" ± {statistics.stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{'+' if signed else ''}.3f}{spread}"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _bytes(sizes: Sequence[int]) -> str:
    low, high = (f"{size / 2**20:.2f} MiB" if size >= 2**14 else f"{size} B" for size in (min(sizes), max(sizes)))
    return low if low == high else f"{low} to {high}"
