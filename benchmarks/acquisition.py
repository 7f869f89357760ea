"""What to label next: BALD, BatchBALD and entropy against random choice, on real sentences (SST-2).

Every seed draws a start of labelled sentences and a pool. Each method labels a batch of the pool, an adapter is trained
from scratch on all labels, and its posterior chooses the next batch. Methods share start, pool, test sentences and the
training's seed. In ``repeated`` every sentence of the pool stands there four times.

Every training is cached under --work-dir, so that a run can be interrupted.
"""

import argparse
import hashlib
import json
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, write_results

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.acquisition import METHODS, batch_bald
from laplace_lora.demo.encoder import encoder_folder
from laplace_lora.demo.training import batches, train_adapter

Row = dict[str, Any]
RANDOM = "random"
COPIES = {"sst2": 1, "sst2, repeated": 4}
EPOCHS, LEARNING_RATE, RESAMPLES = 12, 2e-3, 10_000
CANDIDATES, DRAWS, CONFIGURATIONS = 200, 4096, 256


class Run:
    """One seed of one case: its sentences, and trainings that are kept."""

    def __init__(self, case: str, seed: int, options: argparse.Namespace) -> None:
        """Draw start and pool."""
        self.seed, self.options = seed, options
        # What was trained with other settings is not taken up.
        settings = json.dumps(_settings(options), sort_keys=True).encode()
        name = f"{case.replace(', ', '-')}-{hashlib.sha256(settings).hexdigest()[:8]}"
        self.folder = options.work_dir / name / f"seed{seed}"
        distinct = options.pool // COPIES[case]
        rows = random.Random(seed).sample(_read(options.data_dir / "sst2/train.jsonl"), options.start + distinct)
        self.start, pool = rows[: options.start], rows[options.start :]
        # By length, so that batches hold little padding; predictions are the same in any order.
        self.pool = sorted((row for row in pool for _ in range(COPIES[case])), key=_length)
        self.test = sorted(_read(options.data_dir / "sst2/test.jsonl")[: options.test], key=_length)

    def step(self, name: str, chosen: Sequence[int], methods: Sequence[str]) -> dict[str, Any]:
        """Train on the start and what was chosen of the pool; predict the test and choose a batch by each method."""
        path = self.folder / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text())
        rows = [*self.start, *(self.pool[index] for index in chosen)]
        settings = {"epochs": EPOCHS, "learning_rate": LEARNING_RATE, "batch_size": 16, "seed": self.seed}
        model, tokenizer = train_adapter(encoder_folder(), rows, classes=2, rank=8, progress=False, **settings)
        la = LaplaceLoRA(model, LaplaceConfig(progress=False)).fit(batches(rows, tokenizer, 32))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of evidence tuning; see docs/tuning.md
            la.tune_prior("auto")
        predictive = la.predict_dataset(batches(self.test, tokenizer, 32))
        found = {
            "probabilities": predictive.probabilities.tolist(),
            "map_probabilities": predictive.map_probabilities.tolist(),
            "prior_precision": la.prior_precision,
            "chosen": list(chosen),
            "next": self.choose(la, tokenizer, chosen, methods),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(found))
        partial.rename(path)
        return found

    def choose(self, la: LaplaceLoRA, tokenizer: Any, chosen: Sequence[int], methods: Sequence[str]) -> dict[str, Any]:
        """Choose a batch of what is left of the pool by each method."""
        left = sorted(set(range(len(self.pool))) - set(chosen))
        size = self.options.batch
        found: dict[str, Any] = {}
        if RANDOM in methods:
            found[RANDOM] = random.Random(f"{self.seed} {len(chosen)}").sample(left, size)
        wanted = [method for method in methods if method != RANDOM]
        if not wanted:
            return found
        predictive = la.predict_dataset(batches([self.pool[i] for i in left], tokenizer, 32))
        for method in wanted:
            order = METHODS[method].score(predictive).argsort(descending=True, stable=True)
            if METHODS[method].batch is None:
                found[method] = [left[i] for i in order[:size].tolist()]
                continue
            candidates = sorted(left[i] for i in order[:CANDIDATES].tolist())
            joint = la.predict_joint(batches([self.pool[i] for i in candidates], tokenizer, 32))
            batch = batch_bald(joint, size, DRAWS, CONFIGURATIONS)
            found[method] = [candidates[i] for i in batch.index]
            found["information"] = batch.information
        return found

    def outcomes(self) -> dict[str, list[dict[str, Any]]]:
        """Label round after round by every method; return each method's steps, the common start left out."""
        methods = [RANDOM, *METHODS]
        start = self.step("start", [], methods)
        found: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
        for method in methods:
            at, chosen = start, list[int]()
            for number in range(1, self.options.rounds + 1):
                chosen = [*chosen, *at["next"][method]]
                last = number == self.options.rounds
                at = self.step(f"{method}-{len(chosen)}", chosen, [] if last else [method])
                found[method].append(at)
        return found


def measure(case: str, runs: Sequence[Run], options: argparse.Namespace) -> dict[str, Any]:
    """Compare every method with random choice, over seeds and test sentences."""
    outcomes = [run.outcomes() for run in runs]
    labels = np.array([row["label"] for row in runs[0].test])
    result: dict[str, Any] = {"case": case, "seeds": [run.seed for run in runs], "rounds": []}
    starts = [run.step("start", [], []) for run in runs]
    result["start"] = {name: float(values.mean()) for name, values in _figures(starts, labels).items()}
    result["information"] = [step["next"]["information"] for step in starts]
    first = [{name: set(step["next"][name]) for name in METHODS} for step in starts]
    result["shared_with_bald"] = {
        name: float(np.mean([len(each[name] & each["bald"]) for each in first])) for name in METHODS if name != "bald"
    }
    for number in range(options.rounds):
        steps = {method: [found[method][number] for found in outcomes] for method in outcomes[0]}
        figures = {method: _figures(each, labels) for method, each in steps.items()}
        entry: dict[str, Any] = {"labels": options.start + options.batch * (number + 1), "methods": {}}
        for method, values in figures.items():
            shown: dict[str, Any] = {name: float(each.mean()) for name, each in values.items()}
            shown["by_seed"] = {name: each.mean(axis=1).tolist() for name, each in values.items()}
            picked = [[run.pool[i] for i in step["chosen"]] for run, step in zip(runs, steps[method], strict=True)]
            shown["distinct"] = float(np.mean([len({row["text"] for row in rows}) for rows in picked]))
            shown["positive"] = float(np.mean([row["label"] for rows in picked for row in rows]))
            if method != RANDOM:
                shown["less_random"] = {name: _interval(each - figures[RANDOM][name]) for name, each in values.items()}
            entry["methods"][method] = shown
        result["rounds"].append(entry)
    return result


def _figures(steps: Sequence[dict[str, Any]], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return (seeds, test) accuracies and NLL, of the posterior's probabilities and of MAP's."""
    found: dict[str, np.ndarray] = {}
    for name, key in (("", "probabilities"), ("map_", "map_probabilities")):
        p = np.array([step[key] for step in steps])
        found[f"{name}accuracy"] = (p.argmax(axis=2) == labels).astype(float)
        found[f"{name}nll"] = -np.log(p[:, np.arange(len(labels)), labels])
    return found


def _interval(differences: np.ndarray) -> dict[str, float]:
    """Return the mean of (seeds, test) paired differences and its 95 % interval, seeds and test both resampled."""
    rng = np.random.default_rng(0)
    seeds, tests = differences.shape
    over_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    over_tests = rng.multinomial(tests, np.full(tests, 1 / tests), RESAMPLES) / tests
    sampled = ((over_seeds @ differences) * over_tests).sum(axis=1)
    low, high = np.quantile(sampled, [0.025, 0.975])
    return {"estimate": float(differences.mean()), "low": float(low), "high": float(high)}


def _length(row: Row) -> int:
    return len(row["text"])


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Run all seeds, case by case, and write what is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/ as JSONL")
    parser.add_argument("--work-dir", type=Path, default=RESULTS.parents[1] / "build" / "acquisition")
    parser.add_argument("--cases", nargs="+", choices=COPIES, default=list(COPIES), help="(default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="(default: 0 to 4)")
    parser.add_argument("--start", type=int, default=50, help="labelled sentences at first (default: 50)")
    parser.add_argument("--batch", type=int, default=50, help="labelled in every round (default: 50)")
    parser.add_argument("--rounds", type=int, default=1, help="(default: 1)")
    parser.add_argument("--pool", type=int, default=400, help="unlabelled sentences (default: 400)")
    parser.add_argument("--test", type=int, default=500, help="test sentences (default: 500)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for case in options.cases:
        runs = [Run(case, seed, options) for seed in options.seeds]
        for run in runs:
            run.outcomes()
            print(case, run.seed, flush=True)
        results.append(measure(case, runs, options))
        write_results("acquisition", {"settings": _settings(options), "cases": results}, show=False)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {name: getattr(options, name) for name in ("start", "batch", "rounds", "pool", "test")}
    return sizes | {
        "epochs": EPOCHS,
        "learning_rate": LEARNING_RATE,
        "candidates": CANDIDATES,
        "draws": DRAWS,
        "configurations": CONFIGURATIONS,
    }


if __name__ == "__main__":
    main()
