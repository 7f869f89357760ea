"""A small grid for tests of the benchmark, and its lines without what differs from run to run."""

from pathlib import Path
from typing import Any

from laplace_lora.bench import BenchConfig
from laplace_lora.commands.console import Console
from laplace_lora.training import TrainingSettings

QUIET = Console(quiet=True)
TRAINING = TrainingSettings(epochs=3, batch_size=4, learning_rate=5e-3, dropout=0.1)
FEW = ("map", "temperature", "deep_ensemble", "laplace")


def config(base: Path, data: Path, out: Path, **changes: Any) -> BenchConfig:
    settings: dict[str, Any] = {
        "base": str(base),
        "tasks": ("sst2",),
        "methods": FEW,
        "seeds": (0,),
        "out": out,
        "cache": out / "cache",
        "data_dir": data,
        "training": TRAINING,
        "ood": {"sst2": ("rte", "mrpc")},
        "max_length": 24,
        "batch_size": 4,
    }
    return BenchConfig(**(settings | changes))


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "cost"} for line in lines]
