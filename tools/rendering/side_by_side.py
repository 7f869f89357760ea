"""Tables of this library beside its peers, of growth, and of the GPU script."""

from collections.abc import Iterable
from typing import Any

from rendering.common import load, mib, origin, table

_NAMES = {"ours": "laplace-lora"}


def peers() -> str:
    """One row per tool and variant."""
    document = load("peers")
    parts = []
    for part in document["results"]["by_classes"]:
        rows = []
        for row in part["rows"]:
            covariance = row.get("covariance", {})
            said = {_said(step["raised"]) for step in row.values() if isinstance(step, dict) and "raised" in step}
            rows.append(
                [
                    f"{_NAMES.get(row['tool'], row['tool'])}, {_variant(row)}",
                    {"all": "LoRA and head", "lora": "LoRA"}[row["parameters"]],
                    *(_passes(row, call) for call in ("fit", "predict")),
                    *(_peak(row, call) for call in ("fit", "predict")),
                    "" if "stored_posterior_bytes" not in covariance else mib(covariance["stored_posterior_bytes"]),
                    *(_two(covariance.get(key)) for key in ("error_joint", "error_blocks", "variance_over_joint")),
                    "; ".join(sorted(said)),
                ]
            )
        head = [
            "tool",
            "weights",
            "fit, F",
            "predict, F",
            "fit, + MiB",
            "predict, + MiB",
            "stored, MiB",
            "error",
            "error of blocks",
            "variance / GGN's",
            "raised",
        ]
        parts.append(f"K={part['classes']}:\n\n{table(head, rows)}")
    return "\n\n".join([*parts, f"Made by {origin(document)}"])


def peers_ratios() -> str:
    """A peer's figures over this library's."""
    rows = []
    for part in load("peers")["results"]["by_classes"]:
        for ratio in part["ours_against"]:
            keys = ("fit_time", "predict_time", "fit_memory", "predict_memory", "stored")
            weights = {"all": "LoRA and head", "lora": "LoRA"}[ratio["parameters"]]
            rows.append([str(part["classes"]), ratio["peer"], ratio["ours"], weights, *(_two(ratio[k]) for k in keys)])
    head = ["K", "peer", "ours", "weights", "fit time", "predict time", "fit memory", "predict memory", "stored bytes"]
    return table(head, rows)


def peers_raised() -> str:
    """What documented calls of the peers raise in this environment, and what was worked round."""
    results = load("peers")["results"]
    lines = []
    for tool, raised in results["raised"].items():
        lines += [f"- {tool}, `{call}`: {_said(error) if error else 'nothing'}" for call, error in raised.items()]
    lines.append("")
    for tool, found in results["workarounds"].items():
        lines += [f"- {tool}: {line}." for line in found]
    return "\n".join(lines)


def growth() -> str:
    """Slopes of logarithms over the upper decade."""
    document = load("growth")
    slopes = document["results"]["slopes"]
    parameters = list(document["results"]["base"])
    rows = [
        [name.replace("_", " "), *(_two(found.get(parameter, {}).get("slope")) for parameter in parameters)]
        for name, found in slopes.items()
    ]
    return f"{table(['slope of', *parameters], rows)}\n\nMade by {origin(document)}"


def _variant(row: Any) -> str:
    extras = ["eager attention"] if row["attention"] == "eager" else []
    return ", ".join([row["variant"].replace("_", " "), *extras])


def _passes(row: Any, call: str) -> str:
    return _two(row.get("time", {}).get(call, {}).get("forward_passes", {}).get("median"))


def _peak(row: Any, call: str) -> str:
    found = row.get(f"memory_{call}", {}).get("peak_bytes")
    return "" if found is None else f"{found / 2**20:.0f}"


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _said(error: Any) -> str:
    return f"{error['class']}: {error['message'] or '(no message)'} [{error['line']}]".replace("|", "\\|")


def gpu_tiny() -> str:
    """What the GPU script printed on a CPU."""
    document = load("gpu-tiny")
    seen, rows = set(), []
    for found in document["results"]["measurements"]:
        key = tuple(found[name] for name in ("classes", "batch", "of", "what"))
        if key in seen:  # references are measured again beside every structure
            continue
        seen.add(key)
        ratios = (found.get(name) for name in ("over_forward", "over_passes", "over_training_step"))
        rows.append([*map(str, key), f"{found['seconds']:.4f}", *(_two(ratio) for ratio in ratios)])
    head = ["K", "B", "of", "what", "s", "/ forward", "/ passes", "/ training step"]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def gpu() -> str:
    """A model in the shape of Llama-2-7B on a GPU: every structure and peer in forward passes of the same batch."""
    document = load("gpu")
    groups: dict[tuple[int, int, str], dict[str, Any]] = {}
    ends: dict[tuple[int, str], Any] = {}
    for found in document["results"]["measurements"]:
        if found["what"] == "finalise":
            ends[found["classes"], found["of"]] = found
        elif "over_forward" in found:  # references are measured beside every structure: the last stand here
            groups.setdefault((found["classes"], found["batch"], found["of"]), {})[found["what"]] = found
    rows = []
    for (classes, batch, of), calls in sorted(groups.items(), key=lambda group: group[0][:2]):
        size = [str(classes), str(batch)]
        if of == "reference":
            for what, shown in (("passes", "K-1 backward passes"), ("training_step", "one backward pass")):
                rows.append([*size, f"the model: {shown}", "", "", _forward(calls, what), _most([calls[what]]), "", ""])
                rows[-1].append(f"{calls['forward']['seconds']:.3f}" if what == "passes" else "")
            continue
        end = ends.get((classes, of))
        fit = [_forward(calls, "fit exact") or _forward(calls, "fit kron"), _forward(calls, "fit rademacher")]
        finished = ["", ""] if end is None else [f"{end['stored_bytes'] / 2**20:.0f}", f"{end['seconds']:.2f}"]
        predict = _forward(calls, "predict") or "failed"
        rows.append([*size, of, *fit, predict, _most(calls.values()), *finished, ""])
    head = ["K", "B", "what", "fit, F", "fit one pass, F", "predict, F"]
    head += ["+ MiB", "stored, MiB", "end of fit, s", "F, s"]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def _forward(calls: dict[str, Any], what: str) -> str:
    return _two(calls.get(what, {}).get("over_forward"))


def _most(calls: Iterable[Any]) -> str:
    return f"{max(call['peak_bytes'] for call in calls) / 2**20:.0f}"


def gpu_skipped() -> str:
    """What the GPU script could not measure, in its words."""
    lines = [f"- {entry['name']}: {entry['why']}" for entry in load("gpu")["results"]["skipped"]]
    return "\n".join(lines)
