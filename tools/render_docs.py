"""Write the figures of README and docs/ from the committed JSON, between markers.

    python tools/render_docs.py           rewrite the files
    python tools/render_docs.py --check   exit 1 if a file does not say what the JSON says

A marker pair `<!-- begin NAME -->` ... `<!-- end NAME -->` holds the output of the renderer NAME.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FILES = (
    "README.md",
    "docs/kfac_conventions.md",
    "docs/real_data.md",
    "docs/costs.md",
    "docs/demo.md",
    "docs/command_line.md",
    "docs/readouts.md",
)


def load(name: str) -> Any:
    """Read one committed result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def origin(document: Any) -> str:
    """Say how and where a file's figures were made."""
    machine = document["machine"]
    found = document.get("versions") or machine.get("versions", {})
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    where = machine.get("processor") or machine.get("platform", "")
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    return f"`{document['command']}`; {where}{cores}, Python {machine['python']}, {versions}."


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
                f"{seed['train_accuracy']:.3f}",
                f"{before['accuracy']:.3f} → {after['accuracy']:.3f}",
                _change(before["nll"], after["nll"], difference["nll"]),
                _change(before["kl"], after["kl"], difference["kl"]),
                f"{before['ece']:.3f} → {after['ece']:.3f}",
                f"{after['ece_floor']:.3f}",
                "all met" if not missed else "missed: " + ", ".join(missed),
            ]
        )
    head = ["seed", "train accuracy", "accuracy", "NLL", "KL to the truth", "ECE", "ECE floor", "bars"]
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
    return table(["", "trained adapter (MAP)", "Laplace", "difference [95 % interval]"], rows)


def kfac_summary() -> str:
    """Mean ratios over all adapters, one row per convention."""
    document = load("kfac_conventions")
    results = document["results"]
    deltas = list(results[0]["ratios"])
    rows = []
    for name in results[0]["ratios"][deltas[0]]:
        row = [name]
        for key in ("over_blocks", "over_joint"):
            for delta in deltas:
                values = [result["ratios"][delta][name][key] for result in results]
                mean = sum(values) / len(values)
                row.append(f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})")
        rows.append(row)
    head = ["posterior"] + [f"over exact {kind}, δ={d}" for kind in ("blocks", "joint") for d in deltas]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def kfac_each() -> str:
    """One row per adapter: ratios to the exact blocks."""
    document = load("kfac_conventions")
    names = ("fitted", "reduce", "expand", "official scale", "diagonal", "prior alone")
    rows = []
    for result in document["results"]:
        for delta, ratios in result["ratios"].items():
            start = [
                result["task"],
                str(result["classes"]),
                str(result["epochs"]),
                f"{result['train_accuracy']:.2f}",
                delta,
            ]
            rows.append(start + [f"{ratios[name]['over_blocks']:.2f}" for name in names])
    return table(["task", "K", "epochs", "train accuracy", "δ", *names], rows)


def sst2() -> str:
    """MAP and Laplace on SST-2."""
    document = load("sst2")
    rows = []
    for result in document["results"]:
        start = [result["setting"], str(result["train"]), str(result["seed"]), f"{result['train_accuracy']:.3f}"]
        first = True
        for key, value in result.items():
            if not isinstance(value, dict):
                continue
            if first:
                scores = value["methods"]["map"]
                rows.append([*start, "MAP", "", *_scores(scores), ""])
                first = False
            scores = value["methods"]["laplace"]
            warned = "warned" if value["warned"] else ""
            rows.append(["", "", "", "", key, f"{value['prior_precision']:.3g}", *_scores(scores), warned])
    head = [
        "setting",
        "N",
        "seed",
        "train accuracy",
        "method",
        "prior precision",
        "accuracy",
        "NLL",
        "ECE",
        "ECE floor",
        "evidence check",
    ]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def command_line() -> str:
    """The verbs on real data: every method, and the differences to the trained adapter."""
    document = load("command_line")
    rows = []
    for result in document["results"]:
        start = [result["task"], result["training"], str(result["n"])]
        for method, scores in result["methods"].items():
            change = result["differences"].get(method, {}).get("nll")
            rows.append(
                [
                    *(start if method == "map" else ["", "", ""]),
                    {"map": "MAP", "temperature": "temperature", "laplace": "Laplace"}[method],
                    *_scores(scores),
                    _cell(scores["auroc"]),
                    f"{scores['aurc']:.3f}",
                    "" if change is None else _interval(change),
                ]
            )
    head = ["task", "training", "n", "method", "accuracy", "NLL", "ECE", "ECE floor", "AUROC", "AURC", "NLL less MAP's"]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def command_line_each() -> str:
    """The commands of every run and what they said."""
    return "\n\n".join(_session(f"{r['task']}, {r['training']}", r) for r in load("command_line")["results"])


def _session(heading: str, result: Any, more: str = "") -> str:
    """The commands of one run, what they said, and how long they took."""
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in result["seconds"].items())
    said = "\n>\n".join(f"> {message['event']}: {message['message']}" for message in result["messages"])
    commands = "\n".join(f"    {command}" for command in result["commands"])
    return f"### {heading}\n\n{commands}\n\n{said}\n\n{more}Took {seconds}."


def breadth() -> str:
    """One row per way of reading and method."""
    document = load("breadth")
    rows = []
    for result in document["results"]:
        start = [result["case"], str(result["n"])]
        for name, scores in result["methods"].items():
            rows.append(
                [
                    *start,
                    {"map": "MAP", "laplace": "Laplace"}[name],
                    *(_figure(scores, metric) for metric in ("accuracy", "nll", "ece", "rmse", "coverage_95")),
                ]
            )
            start = ["", ""]
    head = ["case", "n", "method", "accuracy", "NLL", "ECE", "RMSE", "in the 95 % interval"]
    return table(head, rows) + f"\n\nMade by {origin(document)}"


def breadth_each() -> str:
    """The commands of every way of reading, what they said, and a prediction."""
    parts = []
    for result in load("breadth")["results"]:
        prediction = json.dumps(_rounded(result["first_prediction"]), ensure_ascii=False)
        parts.append(_session(result["case"], result, f"The first prediction: `{prediction}`. "))
    return "\n\n".join(parts)


def _figure(scores: Any, metric: str) -> str:
    value = scores.get(metric)
    return "" if value is None else f"{value:.3f}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def passes() -> str:
    """Ratios of fit and predict to passes."""
    document = load("passes")
    keys = ("predict_over_passes", "fit_exact_over_passes", "fit_one_pass_over_training_step")
    rows = [
        [result["model"], str(result["classes"]), *(_ratio(result[key]) for key in keys)]
        for result in document["results"]["passes"]
    ]
    head = [
        "model",
        "K",
        "predict / (1F + (K-1)B)",
        "fit, exact Fisher / (1F + (K-1)B)",
        "fit, one-pass Fisher / training step",
    ]
    repeats = document["results"]["passes"][0]["repeats"]
    note = f"Median of {repeats} paired ratios, quartiles in brackets; B=8, T=96, q and v adapted (r=8), dropout 0."
    return f"{table(head, rows)}\n\n{note}\n\nMade by {origin(document)}"


def evidence() -> str:
    """Evidence tuning beside the fit."""
    document = load("evidence")
    rows = [
        [
            e["model"],
            str(e["classes"]),
            str(e["examples"]),
            f"{e['fit_seconds']:.1f}",
            f"{e['evidence_seconds']:.3f}",
            f"{100 * e['evidence_over_fit']:.2f} %",
        ]
        for e in document["results"]
    ]
    head = ["model", "K", "N", "fit, s", "evidence tuning, s", "share"]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def memory() -> str:
    """Peak memory beside a training step."""
    document = load("memory")
    rows = []
    for result in document["results"]:
        step = result["training_step"]["peak_bytes"]
        rows.append(
            [result["model"], str(result["classes"]), _mib(step)]
            + [
                f"{_mib(result[k]['peak_bytes'])} ({result[k]['peak_bytes'] / step:.2f} x)"
                for k in ("fit", "fit_one_pass", "predict")
            ]
            + [_mib(result["predict"]["stored_posterior_bytes"]), _mib(result["predict"]["weighted_jacobian_bytes"])]
        )
    head = [
        "model",
        "K",
        "training step",
        "fit, exact Fisher",
        "fit, one-pass",
        "predict",
        "stored posterior",
        "4 B (K-1) P of predict",
    ]
    return f"{table(head, rows)}\n\nIn MiB. Made by {origin(document)}"


def checkpointing() -> str:
    """Peak memory and time with gradient checkpointing."""
    document = load("checkpointing")
    names = {
        "training_step": "training step",
        "training_step_checkpointed": "the same, gradient checkpointing",
        "fit": "fit, exact Fisher (3 backward passes)",
        "fit_checkpointed": "the same, gradient checkpointing",
    }
    rows = [[names[r["step"]], _mib(r["peak_bytes"]), f"{r['seconds']:.1f}"] for r in document["results"]]
    batch = document["results"][0]["batch"]
    head = [f"llama_30m, K = 4, {batch[0]} texts of {batch[1]} tokens", "peak, MiB", "seconds"]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


RENDERERS: dict[str, Callable[[], str]] = {
    "demo_seeds": demo_seeds,
    "demo_calibration": demo_calibration,
    "demo_readme": demo_readme,
    "kfac_summary": kfac_summary,
    "kfac_each": kfac_each,
    "sst2": sst2,
    "command_line": command_line,
    "command_line_each": command_line_each,
    "breadth": breadth,
    "breadth_each": breadth_each,
    "passes": passes,
    "evidence": evidence,
    "memory": memory,
    "checkpointing": checkpointing,
}


def render(text: str) -> str:
    """Fill every marker pair of a page."""

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- begin {name} -->\n{RENDERERS[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", fill, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 on a difference")
    options = parser.parse_args()
    stale = []
    for name in FILES:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        rendered = render(text)
        if rendered != text:
            stale.append(name)
            if not options.check:
                path.write_text(rendered, encoding="utf-8")
    if options.check and stale:
        print(f"not what benchmarks/results says: {', '.join(stale)}; run python tools/render_docs.py", file=sys.stderr)
        raise SystemExit(1)


def _change(before: float, after: float, difference: Any) -> str:
    return f"{before:.3f} → {after:.3f} [{difference['low']:+.2f}, {difference['high']:+.2f}]"


def _scores(scores: Any) -> list[str]:
    # JSON holds null for a log loss that is infinite.
    return ["∞" if scores[key] is None else f"{scores[key]:.3f}" for key in ("accuracy", "nll", "ece", "ece_floor")]


def _cell(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _interval(value: Any) -> str:
    if value["low"] is None:
        return _cell(value["estimate"])
    return f"{value['estimate']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _ratio(value: Any) -> str:
    return f"{value['median']:.3f} [{value['lower_quartile']:.3f}, {value['upper_quartile']:.3f}]"


def _mib(count: float) -> str:
    return f"{count / 2**20:.1f}"


if __name__ == "__main__":
    main()
