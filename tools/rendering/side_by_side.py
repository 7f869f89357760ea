"""Tables of this library beside its peers, of growth, and of the GPU script."""

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
    found: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    stored: dict[tuple[int, str], str] = {}
    ends: dict[tuple[int, str], str] = {}
    for row in document["results"]["measurements"]:
        if row["what"] == "finalise":
            ends[row["classes"], row["of"]] = f"{row['seconds']:.2f}"
            stored[row["classes"], row["of"]] = f"{row['stored_bytes'] / 2**20:.0f}"
        elif "over_forward" in row:
            found.setdefault((row["classes"], row["batch"]), {}).setdefault(row["of"], {})[row["what"]] = row
    rows = []
    for (classes, batch), by in sorted(found.items()):
        reference = by.pop("reference")
        rows.append(
            [
                *(f"{classes}", f"{batch}", "the model: K-1 backward passes"),
                *(
                    "",
                    "",
                    _two(reference["passes"]["over_forward"]),
                    f"{reference['passes']['peak_bytes'] / 2**20:.0f}",
                ),
                *("", "", f"{reference['forward']['seconds']:.3f}"),
            ]
        )
        rows.append(
            [
                *(f"{classes}", f"{batch}", "the model: one backward pass"),
                *("", "", _two(reference["training_step"]["over_forward"])),
                *(f"{reference['training_step']['peak_bytes'] / 2**20:.0f}", "", "", ""),
            ]
        )
        for of, calls in by.items():
            fit = calls.get("fit exact") or calls["fit kron"]
            one = calls.get("fit rademacher", {}).get("over_forward") if "fit exact" in calls else None
            rows.append(
                [
                    *(f"{classes}", f"{batch}", of, _two(fit["over_forward"]), _two(one)),
                    _two(calls["predict"]["over_forward"]) if "predict" in calls else "failed",
                    f"{max(call['peak_bytes'] for call in calls.values()) / 2**20:.0f}",
                    *(stored.get((classes, of), ""), ends.get((classes, of), ""), ""),
                ]
            )
    head = [
        "K",
        "B",
        "what",
        "fit, F",
        "fit one pass, F",
        "predict, F",
        "+ MiB",
        "stored, MiB",
        "end of fit, s",
        "F, s",
    ]
    return f"{table(head, rows)}\n\nMade by {origin(document)}"


def gpu_skipped() -> str:
    """What the GPU script could not measure, in its words."""
    lines = [f"- {entry['name']}: {entry['why']}" for entry in load("gpu")["results"]["skipped"]]
    return "\n".join(lines)
