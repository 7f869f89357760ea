"""Tables of the rules from Gaussian logits to probabilities, and of weight sampling."""

from typing import Any

from rendering.common import load, origin, table

#: Class counts that are shown together.
GROUPS = {"K=2": (2,), "K=3": (3,), "K=4 to 8": (4, 5, 8)}
TIMED = (2, 3, 4, 8)


def integrators() -> str:
    """One row per rule: errors by the number of classes, and times."""
    document = load("integrators")
    results = document["results"]
    times = {entry["classes"]: entry["seconds"] for entry in results["times"]}
    head = ["rule, points"]
    head += [f"{name}: {kind} error" for name in GROUPS for kind in ("mean", "worst")]
    head += ["NLL in excess, K=3 to 8", *(f"s per 1,000, K={classes}" for classes in TIMED)]
    rows = []
    for rule in results["errors"][0]["rules"]:
        row = [rule]
        for group in GROUPS.values():
            cells = [cell["rules"][rule] for cell in results["errors"] if cell["classes"] in group]
            row += [_error(_mean(cells, "mean_error")), _error(max(cell["worst_error"] for cell in cells))]
        beyond = [cell["rules"][rule] for cell in results["errors"] if cell["classes"] > 2]
        row.append(_error(_mean(beyond, "excess_nll")))
        rows.append(row + [f"{times[classes][rule]:.2g}" for classes in TIMED])
    worst = {
        name: max(c["reference_standard_error"]["worst"] for c in results["errors"] if c["classes"] in group)
        for name, group in GROUPS.items()
    }
    said = ", ".join(f"{name} {_error(value) if value else 'none'}" for name, value in worst.items())
    reference, errors = results["reference"], results["errors"]
    about = (
        f"{sum(cell['cases'] for cell in errors)} cases. The reference takes {reference['points']:,} points in "
        f"{reference['scrambles']} scrambles; its worst standard error over the scrambles: {said} (two classes need no "
        "points)."
    )
    return f"{table(head, rows)}\n\n{about} Made by {origin(document)}"


def integrators_by_deviation() -> str:
    """One row per rule: the mean error by the posterior standard deviation, three classes and more."""
    errors = load("integrators")["results"]["errors"]
    deviations = sorted({cell["deviation"] for cell in errors})
    rows = []
    for rule in errors[0]["rules"]:
        row = [rule]
        for deviation in deviations:
            cells = [c["rules"][rule] for c in errors if c["deviation"] == deviation and c["classes"] > 2]
            row.append(_error(_mean(cells, "mean_error")))
        rows.append(row)
    return table(["mean error, K=3 to 8", *(f"sd {deviation:g}" for deviation in deviations)], rows)


def weight_sampling() -> str:
    """One row per checkpoint and method."""
    document = load("weight_sampling")
    results = document["results"]
    rows = []
    for checkpoint in results["checkpoints"]:
        for name, figures in checkpoint["methods"].items():
            interval = figures["intervals"]["nll"]
            rows.append(
                [
                    checkpoint["checkpoint"].removeprefix("checkpoint-"),
                    f"{checkpoint['train_accuracy']:.3f}",
                    f"{checkpoint['prior_precision']:.3g}",
                    f"{checkpoint['median_logit_sd']:.2g}",
                    name,
                    f"{figures['accuracy']:.3f}",
                    f"{figures['nll']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]",
                    f"{figures['ece']:.3f}",
                    f"{checkpoint['seconds'][name]:.0f}" if name in checkpoint["seconds"] else "",
                ]
            )
    head = ["step", "train accuracy", "prior precision", "median sd, logits", "method"]
    head += ["accuracy", "NLL [95 %]", "ECE", "s"]
    about = f"{results['train']} training and {results['test']} test sentences of SST-2."
    return f"{table(head, rows)}\n\n{about} Made by {origin(document)}"


def _mean(cells: list[dict[str, Any]], name: str) -> float:
    return sum(cell[name] for cell in cells) / len(cells)


def _error(value: float) -> str:
    return f"{value:.0e}" if value < 0.001 else f"{value:.2g}"
