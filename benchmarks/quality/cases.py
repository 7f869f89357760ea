"""What the quality benchmark trains: tasks, sizes, parts of the data, and checkpoints of a run."""

import dataclasses
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# What all benchmarks share lies one folder up.
sys.path.append(str(Path(__file__).parents[1]))

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One task, of one size.

    Attributes:
        name: What it is called.
        task: Its folder under the data folder.
        examples: Training examples drawn from its training split.
        max_length: Most tokens per input.
        tests: Test examples, the first of its test split.
        options: Of ``train``, beyond those that all cases share.
        epochs: Passes over the examples.
        learning_rate: Peak rate of AdamW.
    """

    name: str
    task: str
    examples: int
    max_length: int
    tests: int
    options: tuple[str, ...] = ()
    epochs: int = 8
    learning_rate: float = 2e-3


_OPTIONS = ("--readout", "options")
CASES = {
    case.name: case
    for case in (
        Case("sst2", "sst2", 200, 64, 500),
        Case("rte", "rte", 240, 96, 277),
        Case("boolq_passage", "boolq_passage", 200, 128, 300),
        Case("arc_easy", "arc_easy", 240, 48, 300, _OPTIONS),
        Case("openbookqa", "openbookqa", 240, 48, 300, _OPTIONS),
        # Trained gently on more examples: an adapter that is not over-fitted, which tuning must not harm.
        Case("sst2_gentle", "sst2", 640, 64, 500, epochs=4, learning_rate=1e-3),
        Case("winogrande_s", "winogrande_s", 200, 48, 400, _OPTIONS),
    )
}
#: Tasks that three more adapters are trained for, on two thirds of the examples each.
CROSS_FITTED = ("sst2", "rte")
FOLDS = 3
#: Of the examples, those that temperature scaling holds out.
HELD_OUT = 0.2
BATCH_SIZE = 8
#: Checkpoints by how far the run's training NLL has come down from guessing; the last is the run's end.
UNDER_TRAINED, SOUND = 0.9, 0.5
PARTS = ("all", "most", *(f"fold{index}" for index in range(FOLDS)))


def parts_of(name: str) -> Sequence[str]:
    """Return which adapters are trained for a case: on all examples, on 80 %, and on all but each fold."""
    return PARTS if name in CROSS_FITTED else PARTS[:2]


def read_rows(path: Path) -> list[Row]:
    """Read JSONL."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def training_rows(data: Path, case: Case, seed: int) -> list[Row]:
    """Draw a seed's training examples."""
    rows = read_rows(data / case.task / "train.jsonl")
    return random.Random(seed).sample(rows, case.examples)


def held_out_positions(case: Case, part: str) -> list[int]:
    """Return which of the training examples a part does without."""
    if part == "all":
        return []
    if part == "most":
        return list(range(case.examples - math.ceil(HELD_OUT * case.examples), case.examples))
    return list(range(int(part.removeprefix("fold")), case.examples, FOLDS))


def split(rows: Sequence[Row], case: Case, part: str) -> tuple[list[Row], list[Row]]:
    """Return the examples that a part is trained on, and those that it is not."""
    out = set(held_out_positions(case, part))
    return [row for i, row in enumerate(rows) if i not in out], [row for i, row in enumerate(rows) if i in out]


def test_rows(data: Path, case: Case) -> list[Row]:
    """Return the test examples."""
    return read_rows(data / case.task / "test.jsonl")[: case.tests]
