"""The command line on real data, as a newcomer would use it: train, fit, evaluate; every command is recorded.

500 training examples of each task, MiniLM, the verbs' own defaults where nothing is said. Once trained for all epochs
(the last one is kept, and the adapter grows over-confident), once with early stopping on the validation rows.
"""

import argparse
import json
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

from common import RESULTS, run_verb, write_results

from laplace_lora.demo.encoder import encoder_folder

# Rows of validation and test, and the longest input: passages are long, and two cores are slow.
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {"validation": 200, "test": 500, "labels": "negative,positive", "max_length": None},
    "rte": {"validation": 200, "test": 277, "labels": "entailment,not entailment", "max_length": None},
    "boolq_passage": {"validation": 200, "test": 400, "labels": None, "max_length": 128},
}
TRAINING = {"all epochs": False, "early stopping": True}


def measure(task: str, training: str, data: Path, examples: int, epochs: int) -> dict[str, Any]:
    """Run the three verbs on one task in a folder of its own, where relative names keep the commands readable."""
    options = TASKS[task]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for split, rows in (("train", examples), ("validation", options["validation"]), ("test", options["test"])):
            lines = (data / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "MiniLM").symlink_to(encoder_folder())
        train = ["train", "--model", "MiniLM", "--data", "train.jsonl", "--out", "adapter", "--epochs", str(epochs)]
        train += ["--labels", options["labels"]] if options["labels"] else []
        train += ["--max-length", str(options["max_length"])] if options["max_length"] else []
        train += ["--validation", "validation.jsonl"] if TRAINING[training] else []
        fit = ["fit", "--adapter", "adapter", "--data", "train.jsonl", "--validation", "validation.jsonl"]
        evaluate = ["evaluate", "--adapter", "adapter", "--data", "test.jsonl", "--validation", "validation.jsonl"]
        evaluate += ["--out", "report"]
        commands, seconds, messages = [], {}, []
        for arguments in (train, fit, evaluate):
            start = time.perf_counter()
            messages += run_verb(arguments, folder)
            seconds[arguments[0]] = time.perf_counter() - start
            commands.append(shlex.join(["laplace-lora", *arguments]))
        metrics = json.loads((folder / "report" / "metrics.json").read_text(encoding="utf-8"))
    return {
        "task": task,
        "training": training,
        "train": examples,
        "n": metrics["n"],
        "commands": commands,
        "seconds": seconds,
        "messages": [message for message in messages if message["event"] in ("fitted", "prior", "warning")],
        "prior_precision": metrics["prior_precision"],
        "temperature": metrics["temperature"],
        "methods": metrics["methods"],
        "differences": metrics["differences"],
    }


def main() -> None:
    """Measure every task; what an earlier, interrupted run finished is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/, rte/ and boolq_passage/")
    parser.add_argument("--examples", type=int, default=500, help="training examples (default: 500)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs, at most (default: 10)")
    options = parser.parse_args()
    done = RESULTS / "command_line.json"
    results = json.loads(done.read_text(encoding="utf-8"))["results"] if done.exists() else []
    have = {(result["task"], result["training"]) for result in results}
    for training in TRAINING:
        for task in TASKS:
            if (task, training) not in have:
                results.append(measure(task, training, options.data_dir, options.examples, options.epochs))
                write_results("command_line", results)


if __name__ == "__main__":
    main()
