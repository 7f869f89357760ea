"""Tables of the demo."""

from typing import Any

from rendering.common import load, origin, table


def demo_seeds() -> str:
    """One row per seed of the demo."""
    document = load("demo")
    rows = []
    for seed in document["seeds"]:
        before, after, difference = seed["methods"]["map"], seed["methods"]["laplace"], seed["difference"]
        missed = [str(i + 1) for i, met in enumerate(seed["bars_met"]) if not met]
        rows.append(
            [
                str(seed["seed"]),
                str(seed["n"]),
                f"{seed['train_accuracy']:.3f}",
                f"{before['accuracy']:.3f} → {after['accuracy']:.3f}",
                _change(before["nll"], after["nll"], difference["nll"]),
                _change(before["kl"], after["kl"], difference["kl"]),
                f"{before['ece']:.3f} → {after['ece']:.3f}",
                f"{after['ece_floor']:.3f}",
                "all met" if not missed else "missed: " + ", ".join(missed),
            ]
        )
    head = [
        "seed",
        "test sentences",
        "train accuracy",
        "accuracy",
        "NLL",
        "KL to the truth",
        "ECE",
        "ECE floor",
        "bars",
    ]
    bars = "\n".join(f"{i + 1}. {bar}" for i, bar in enumerate(document["bars"]))
    return f"{table(head, rows)}\n\nBars, per seed:\n\n{bars}\n\nMade by {origin(document)}"


def demo_calibration() -> str:
    """One adapter, many test sets: the ECE over its floor."""
    document = load("demo_calibration")
    rows = []
    for result in document["results"]:
        ratios = [part["ece"] / part["ece_floor"] for part in result["sets"]]
        whole = result["together"]
        rows.append(
            [
                str(result["seed"]),
                str(result["validation"]),
                ", ".join(f"{ratio:.2f}" for ratio in ratios),
                f"{sum(ratio > 1.5 for ratio in ratios)} of {len(ratios)}",
                f"{whole['ece']:.3f} (floor {whole['ece_floor']:.3f}, n={whole['n']})",
            ]
        )
    head = [
        "development seed",
        "validation",
        "ECE over its floor on each set of 300",
        "above 1.5",
        "ECE of all sets together",
    ]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def demo_readme() -> str:
    """The first seed's table, as the demo prints it."""
    document = load("demo")
    seed = document["seeds"][0]
    before, after, difference = seed["methods"]["map"], seed["methods"]["laplace"], seed["difference"]
    names = {
        "nll": "negative log-likelihood (nats)",
        "kl": "KL divergence to the true probabilities (nats)",
        "ece": "calibration error (ECE)",
        "brier": "Brier score",
        "accuracy": "accuracy",
    }
    rows = [
        [
            label,
            f"{before[key]:.3f}",
            f"{after[key]:.3f}",
            f"{difference[key]['estimate']:+.3f} [{difference[key]['low']:+.3f}, {difference[key]['high']:+.3f}]",
        ]
        for key, label in names.items()
    ]
    rows.insert(
        3,
        ["  its floor: a perfectly calibrated model's", f"{before['ece_floor']:.3f}", f"{after['ece_floor']:.3f}", ""],
    )
    return table([f"test, n = {seed['n']}", "trained adapter (MAP)", "Laplace", "difference [95 % interval]"], rows)


def _change(before: float, after: float, difference: Any) -> str:
    return f"{before:.3f} → {after:.3f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"
