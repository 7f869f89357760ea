"""Every way of reading a model, on real data, by the command line: train, fit, evaluate, predict.

A small encoder and a tiny language model on small samples: what is shown is that every path runs, what it costs, and
that a model which knows nothing says so. Accuracy near chance is expected throughout, and no published table is near.
"""

import argparse
import json
import shlex
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, run_verb, write_results

from laplace_lora.demo.encoder import encoder_folder

Row = dict[str, Any]
ROWS = {"train": 160, "validation": 60, "test": 120}
SHORT = ["--max-length", "48"]
LLAMA = ["--target-modules", "q_proj,v_proj,lm_head"]
#: The words of this prompt's answers are letters: the tiny vocabularies hold no True and no False.
BOOLQ = "{{ passage }} Question: {{ question }} Choices: A. no B. yes Answer:"


def as_completion(row: Row) -> Row:
    """The right answer as a text to learn."""
    return {"prompt": row["question"], "completion": " " + row["choices"][row["label"]]}


def as_preference(row: Row) -> Row:
    """The right answer preferred to the next wrong one."""
    choices, label = row["choices"], row["label"]
    rejected = choices[(label + 1) % len(choices)]
    return {"prompt": row["question"] + " ", "chosen": choices[label], "rejected": rejected}


def as_number(row: Row) -> Row:
    """A sentiment as a number, -1 or 1."""
    return {"text": row["text"], "label": 2.0 * row["label"] - 1.0}


# name: task, model, options of train, how rows are changed, whether fit takes the validation rows
Case = tuple[str, str, list[str], Callable[[Row], Row] | None, bool]
CASES: dict[str, Case] = {
    "arc_easy, multiple-choice encoder": ("arc_easy", "MiniLM", ["--readout", "options", *SHORT], None, True),
    "openbookqa, multiple-choice encoder": ("openbookqa", "MiniLM", ["--readout", "options", *SHORT], None, True),
    "winogrande_s, answer tokens": ("winogrande_s", "llama", ["--readout", "answers", *LLAMA], None, True),
    "arc_easy, answer tokens": ("arc_easy", "llama", ["--readout", "answers", *LLAMA], None, True),
    "boolq_passage, answer tokens": (
        "boolq_passage",
        "llama",
        ["--readout", "answers", "--answers", "A,B", "--template", BOOLQ, *LLAMA],
        None,
        True,
    ),
    "openbookqa, option scores of a language model": ("openbookqa", "llama", ["--readout", "options"], None, True),
    "openbookqa, next tokens": ("openbookqa", "llama", [], as_completion, False),
    "openbookqa, preferences": ("openbookqa", "MiniLM", [], as_preference, True),
    "sst2, real numbers": ("sst2", "MiniLM", ["--readout", "scalar"], as_number, True),
}


def measure(name: str, data: Path, models: Path, epochs: int) -> dict[str, Any]:
    """Run the four verbs on one case in a folder of its own, where relative names keep the commands readable."""
    task, model, options, change, validated = CASES[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for split, count in ROWS.items():
            lines = (data / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
            rows = [json.loads(line) for line in lines]
            changed = rows if change is None else [change(row) for row in rows]
            text = "".join(json.dumps(row) + "\n" for row in changed)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        (folder / "MiniLM").symlink_to(encoder_folder())
        (folder / "llama").symlink_to((models / "babyllama-tok361").resolve())
        train = ["train", "--model", model, "--data", "train.jsonl", "--out", "adapter", "--epochs", str(epochs)]
        fit = ["fit", "--adapter", "adapter", "--data", "train.jsonl"]
        evaluate = ["evaluate", "--adapter", "adapter", "--data", "test.jsonl", "--out", "report"]
        predict = ["predict", "--adapter", "adapter", "--data", "test.jsonl", "--out", "predictions.jsonl"]
        fit += ["--validation", "validation.jsonl"] if validated else []
        commands, seconds, messages = [], {}, []
        for arguments in ([*train, *options], fit, evaluate, predict):
            start = time.perf_counter()
            messages += run_verb(arguments, folder)
            seconds[arguments[0]] = time.perf_counter() - start
            commands.append(shlex.join(["laplace-lora", *arguments]))
        metrics = json.loads((folder / "report" / "metrics.json").read_text(encoding="utf-8"))
        first = json.loads((folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return {
        "case": name,
        "n": metrics["n"],
        "commands": commands,
        "seconds": seconds,
        "messages": [message for message in messages if message["event"] in ("plan", "fitted", "prior", "warning")],
        "readout": metrics["readout"],
        "prior_precision": metrics["prior_precision"],
        "methods": metrics["methods"],
        "differences": metrics["differences"],
        "first_prediction": first,
    }


def main() -> None:
    """Measure every case; what an earlier, interrupted run finished is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with arc_easy/, openbookqa/, ...")
    parser.add_argument("--models-dir", type=Path, required=True, help="folder with babyllama-tok361/")
    parser.add_argument("--epochs", type=int, default=3, help="epochs (default: 3)")
    parser.add_argument("--only", help="part of the names of the cases to run")
    options = parser.parse_args()
    done = RESULTS / "breadth.json"
    results = json.loads(done.read_text(encoding="utf-8"))["results"] if done.exists() else []
    have = {result["case"] for result in results}
    for name in CASES:
        if name not in have and (options.only or "") in name:
            print(name, flush=True)
            results.append(measure(name, options.data_dir, options.models_dir, options.epochs))
            write_results("breadth", results)


if __name__ == "__main__":
    main()
