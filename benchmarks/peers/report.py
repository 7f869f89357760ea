"""Errors against the oracle, this library's figures over its peers', and the tables."""

from typing import Any

from torch import Tensor

_GIB = 2**30
Row = dict[str, Any]


def errors(covariance: Tensor, oracle: dict[str, Tensor], parameters: str) -> dict[str, float]:
    """Return relative Frobenius errors against the joint and the block-diagonal GGN, and the variance over theirs."""
    figures: dict[str, float] = {}
    for kind in ("joint", "blocks"):
        exact = oracle[f"{parameters}.{kind}"]
        figures[f"error_{kind}"] = float((covariance - exact).norm() / exact.norm())
        figures[f"variance_over_{kind}"] = float(_trace(covariance) / _trace(exact))
    return figures


def derived(rows: list[Row]) -> list[Row]:
    """Divide each peer's figures by those of this library's variants over the same parameters: above 1 ours is less."""
    ratios = []
    for peer in (row for row in rows if row["tool"] != "ours" and "raised" not in row.get("time", {"raised": {}})):
        for own in (row for row in rows if row["tool"] == "ours" and row["parameters"] == peer["parameters"]):
            ratio: Row = {"ours": own["variant"], "peer": label(peer), "parameters": peer["parameters"]}
            for call in ("fit", "predict"):
                ratio[f"{call}_time"] = _ratio(_passes(peer, call), _passes(own, call))
                ratio[f"{call}_memory"] = _ratio(_peak(peer, call), _peak(own, call))
            ratio["stored"] = _ratio(_stored(peer), _stored(own))
            if any(isinstance(value, float) for value in ratio.values()):
                ratios.append(ratio)
    return ratios


def label(row: Row) -> str:
    """Name a row."""
    extras = ["eager attention"] if row["attention"] == "eager" else []
    return ", ".join([f"{row['tool']} {row['variant']}", *extras])


def print_tables(results: Row) -> None:
    """Print everything."""
    for part in results["by_classes"]:
        print(f"\nK={part['classes']}, batch {results['case']['batch']}; times in forward passes of the batch")
        table(
            [
                [
                    "",
                    "weights",
                    "fit",
                    "predict",
                    "fit GiB",
                    "predict GiB",
                    "stored MiB",
                    "error",
                    "of blocks",
                    "var",
                    "",
                ],
                *([label(row), row["parameters"], *_figures(row)] for row in part["rows"]),
            ]
        )
        print("error: relative Frobenius, centred logits, against the joint GGN; of blocks: against its blocks;")
        print("var: variance over the joint GGN's (1 is right)")
        print("\nA peer's figure over ours (above 1: ours takes less)")
        keys = ["fit_time", "predict_time", "fit_memory", "predict_memory", "stored"]
        table(
            [
                ["peer", "ours", "weights", *keys],
                *(
                    [ratio["peer"], ratio["ours"], ratio["parameters"], *(_short(ratio[key]) for key in keys)]
                    for ratio in part["ours_against"]
                ),
            ]
        )
    print("\nWhat calls raise here")
    for tool, raised in results["raised"].items():
        for call, error in raised.items():
            print(f"  {tool}, {call}: {_said(error) if error else 'nothing'}")


def table(rows: list[list[str]]) -> None:
    """Print aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _figures(row: Row) -> list[str]:
    covariance = row.get("covariance", {})
    figures = [
        *(_short(_passes(row, call)) for call in ("fit", "predict")),
        *(_short(_ratio(_peak(row, call), _GIB)) for call in ("fit", "predict")),
        _short(_ratio(_stored(row), 2**20)),
        *(_short(covariance.get(key)) for key in ("error_joint", "error_blocks", "variance_over_joint")),
    ]
    said = {_said(step["raised"]) for step in row.values() if isinstance(step, dict) and "raised" in step}
    return [*figures, "; ".join(sorted(said))]


def _passes(row: Row, call: str) -> float | None:
    return row.get("time", {}).get(call, {}).get("forward_passes", {}).get("median")


def _peak(row: Row, call: str) -> float | None:
    return row.get(f"memory_{call}", {}).get("peak_bytes")


def _stored(row: Row) -> float | None:
    return row.get("covariance", {}).get("stored_posterior_bytes")


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _said(error: dict[str, str]) -> str:
    return f"{error['class']}: {error['message'] or '(no message)'} [{error['line']}]"


def _trace(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=-2, dim2=-1).sum()
