"""All seeds together: which meet the demo's bars, shown whether they do or not."""

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path

from laplace_lora.demo.run import DemoConfig, SeedResult

#: What the demo is held to, seed by seed.
BARS = (
    "MAP's training accuracy at least .99 and its test ECE at least .10",
    "Laplace lower in NLL and in KL to the truth, 95 % paired bootstrap intervals below 0",
    "Laplace's ECE at most 1.5 x its sampling floor",
    "Laplace's accuracy at least MAP's less 1 point",
)


def bars_met(result: SeedResult) -> tuple[bool, ...]:
    """Hold one seed's figures against the bars.

    Args:
        result: The figures.

    Returns:
        One answer per entry of ``BARS``.
    """
    methods, difference = result.comparison.methods, result.comparison.difference
    before, after = methods["map"], methods["laplace"]
    return (
        result.train_accuracy >= 0.99 and before.ece >= 0.10,
        difference["nll"].below_zero and difference["kl"].below_zero,
        after.ece <= 1.5 * after.ece_floor,
        after.accuracy >= before.accuracy - 0.01,
    )


def seeds_table(results: Sequence[SeedResult]) -> str:
    """Write one line per seed.

    Args:
        results: In order of the seeds.

    Returns:
        Lines of text: number of test sentences, MAP -> Laplace for every metric, and which bars are met.
    """
    head = (
        f"{'seed':>4}  {'test n':>6}  {'train acc.':>10}  {'accuracy':>13}  {'NLL':>13}  {'KL to truth':>13}  "
        f"{'ECE':>13}  {'floor':>5}  bars"
    )
    lines = [head, "-" * len(head)]
    for result in results:
        before, after = result.comparison.methods["map"], result.comparison.methods["laplace"]
        pairs = [(getattr(before, name), getattr(after, name)) for name in ("accuracy", "nll", "kl", "ece")]
        cells = "  ".join(f"{a:.3f} > {b:.3f}".rjust(13) for a, b in pairs)
        missed = [str(i + 1) for i, met in enumerate(bars_met(result)) if not met]
        outcome = "all met" if not missed else f"missed: {', '.join(missed)}"
        start = f"{result.seed:>4}  {result.comparison.n:>6}  {result.train_accuracy:>10.3f}"
        lines.append(f"{start}  {cells}  {after.ece_floor:>5.3f}  {outcome}")
    lines += [f"bar {i + 1}: {bar}" for i, bar in enumerate(BARS)]
    return "\n".join(lines)


def write_results(path: Path, config: DemoConfig, results: Sequence[SeedResult], command: str) -> None:
    """Write all seeds' figures with settings, versions and command.

    Args:
        path: Where to.
        config: Sizes and settings.
        results: In order of the seeds.
        command: What was typed.
    """
    packages = ("laplace-lora", "torch", "transformers", "peft", "numpy")
    settings = {name: getattr(config, name) for name in config.__dataclass_fields__ if name != "laplace"}
    document = {
        "command": command,
        "machine": {"platform": platform.machine(), "python": platform.python_version()},
        "versions": {name: importlib.metadata.version(name).split("+")[0] for name in packages},
        "config": {**settings, "laplace": config.laplace.to_dict()},
        "bars": list(BARS),
        "seeds": [{**result.to_dict(), "bars_met": list(bars_met(result))} for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
