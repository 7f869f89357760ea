"""Train the quality benchmark's adapters by ``laplace-lora train``: one run per task, seed and part of the data.

Several run side by side, with one thread each. What is there is not trained again, so that a run can be interrupted.
"""

import argparse
import concurrent.futures
import json
import shutil
import time
from pathlib import Path
from typing import Any

from cases import BATCH_SIZE, CASES, PARTS, parts_of, split, training_rows
from common import RESULTS, run_verb

from laplace_lora.demo.encoder import encoder_folder

WORK = RESULTS.parents[1] / "build" / "quality"


def parser_of(description: str | None, needs_data: bool = True) -> argparse.ArgumentParser:
    """Return a parser of what all steps of the benchmark are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if needs_data:
        parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/, rte/, boolq_passage/ ...")
    parser.add_argument("--work-dir", type=Path, default=WORK, help="(default: build/quality)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="(default: all)")
    if needs_data:
        parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="of the data (default: all)")
    return parser


def runs_of(options: argparse.Namespace) -> list[tuple[str, int, str]]:
    """Return the cases, seeds and parts that are wanted, seed by seed; first the parts that every case needs."""
    return [
        (case, seed, part)
        for seed in options.seeds
        for part in PARTS
        for case in options.cases
        if part in options.parts and part in parts_of(case)
    ]


def folder_of(work: Path, task: str, seed: int, part: str) -> Path:
    """Return where a run lives."""
    return work / task / f"seed{seed}" / part


def write_json(path: Path, document: Any) -> None:
    """Write a result whole or not at all, so that an interrupted run finds nothing half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_text(json.dumps(document), encoding="utf-8")
    path.with_suffix(".part").rename(path)


def is_trained(folder: Path) -> bool:
    """Say whether a run has ended."""
    return (folder / "adapter" / "adapter_config.json").exists()


def train(work: Path, data: Path, task: str, seed: int, part: str) -> float:
    """Train one adapter; return the seconds it took, 0 if it was there."""
    case, folder = CASES[task], folder_of(work, task, seed, part)
    if is_trained(folder):
        return 0.0
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of a training that was killed
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "MiniLM").exists():
        (folder / "MiniLM").symlink_to(encoder_folder())
    rows, _ = split(training_rows(data, case, seed), case, part)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["train", "--model", "MiniLM", "--data", "train.jsonl", "--out", "adapter", "--seed", str(seed)]
    arguments += [
        "--epochs",
        str(case.epochs),
        "--batch-size",
        str(BATCH_SIZE),
        "--learning-rate",
        str(case.learning_rate),
    ]
    start = time.perf_counter()
    run_verb([*arguments, "--max-length", str(case.max_length), *case.options], folder)
    return time.perf_counter() - start


def main() -> None:
    """Train all that is wanted and not there, seed by seed."""
    parser = parser_of(__doc__)
    parser.add_argument("--processes", type=int, default=2, help="side by side (default: 2)")
    options = parser.parse_args()
    with concurrent.futures.ThreadPoolExecutor(options.processes) as pool:
        waiting = {
            pool.submit(train, options.work_dir.resolve(), options.data_dir.resolve(), *run): run
            for run in runs_of(options)
        }
        for done in concurrent.futures.as_completed(waiting):
            if done.result():
                print(*waiting[done], f"{done.result():.0f} s", flush=True)


if __name__ == "__main__":
    main()
