"""Do the quality benchmark's adapters notice inputs unlike those they were trained on?

AUROC of telling test examples of the training task from examples of other tasks, with 95 % intervals, by the trained
adapter's confidence and entropy and by the posterior's: confidence, total entropy, and the epistemic part alone (mutual
information). Posteriors are ``kron`` and ``exact``, at the precision of ``auto`` and at that of the plain evidence.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Row, read_rows, split, test_rows, training_rows
from common import write_results
from compare import CHECKPOINTS
from spectra import checkpoints, choose_checkpoints
from structures import Adapter

from adapters import folder_of, is_trained, parser_of, runs_of, write_json
from laplace_lora.evaluation import Logits, Probabilities, ood_scores
from laplace_lora.predictive import of_options

#: Other tasks, whose examples take the form of the case's own.
OUTSIDE = {
    "openbookqa": ("arc_easy", "arc_challenge", "mmlu_cs", "mmlu_eng", "mmlu_health", "mmlu_law"),
    "sst2": ("rte",),
    "sst2_gentle": ("rte",),
}
EXAMPLES = 150
STRUCTURES = ("kron", "exact")


def outside_rows(data: Path, task: str, like: Mapping[str, Any]) -> list[Row]:
    """Return another task's first test examples, as rows of the case's own; labels say nothing here."""
    rows = read_rows(data / task / "test.jsonl")
    if "text" in like:
        return [{"text": row["premise"], "label": 0} for row in rows[:EXAMPLES]]
    options = len(like["choices"])
    whole = [row for row in rows if len(row["choices"]) == options]
    return [{"question": row["question"], "choices": row["choices"], "label": row["label"]} for row in whole[:EXAMPLES]]


def measure(adapter: Adapter, outside: dict[str, list[Row]]) -> dict[str, Any]:
    """Score one adapter's own test examples and those from outside."""
    asked = {"own": adapter.test}
    for name, rows in outside.items():
        asked[name] = adapter.ask(rows)
    probabilities = {key: {"map": Logits(each.mean.numpy()).softmax()} for key, each in asked.items()}
    information: dict[str, dict[str, Any]] = {key: {} for key in asked}
    for structure in STRUCTURES:
        posterior, _ = adapter.fit({"structure": structure})
        evidence, raised, _ = adapter.by_evidence(posterior)
        for way, precision in (("evidence", evidence), ("auto", evidence * raised)):
            kept = way == "auto"
            for key, each in asked.items():
                found = of_options(each.mean, each.covariances(posterior, precision)[0], keeps_answers=kept)
                probabilities[key][f"{structure}, {way}"] = Probabilities(found.probabilities.numpy())
                information[key][f"{structure}, {way}"] = found.mutual_information.numpy()
    return {
        name: ood_scores(
            probabilities["own"],
            probabilities[name],
            in_mutual_information=information["own"],
            out_mutual_information=information[name],
        ).to_dict()
        for name in outside
    }


def main() -> None:
    """Measure what is not there, then write all."""
    parser = parser_of(__doc__)
    options = parser.parse_args()
    torch.set_num_threads(1)
    work, data = options.work_dir.resolve(), options.data_dir.resolve()
    results = []
    for task, seed, part in runs_of(options):
        run = folder_of(work, task, seed, part)
        if part != "all" or task not in OUTSIDE or not is_trained(run):
            continue
        case = CASES[task]
        train, _ = split(training_rows(data, case, seed), case, "all")
        chosen = choose_checkpoints(run, train)
        for checkpoint in CHECKPOINTS:
            path = run / "statistics" / checkpoint / "ood.json"
            if not path.exists():
                tests = test_rows(data, case)
                adapter = Adapter.of(checkpoints(run)[chosen[checkpoint]], run, train, tests)
                found = measure(adapter, {name: outside_rows(data, name, tests[0]) for name in OUTSIDE[task]})
                write_json(path, found)
                print(task, seed, checkpoint, flush=True)
            about = {"case": task, "seed": seed, "checkpoint": checkpoint}
            results.append(about | {"outside": json.loads(path.read_text())})
    write_results("ood", results, show=False)


if __name__ == "__main__":
    main()
