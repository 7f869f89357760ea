"""MAP against Laplace on real sentences: SST-2 with 200 examples, interpolated, and 640, stopped early."""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

from common import RESULTS, write_results

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.demo.encoder import encoder_folder
from laplace_lora.demo.training import batches, train_adapter
from laplace_lora.evaluation import Probabilities, compare

SETTINGS = {
    "interpolated": {"train": 200, "epochs": 20, "stop_early": False},
    "stopped early": {"train": 640, "epochs": 8, "stop_early": True},
}


def measure(name: str, data: Path, validation: int, test: int, seed: int, structures: list[str]) -> dict[str, Any]:
    """Train once and compare MAP with Laplace under both tuners."""
    setting = SETTINGS[name]
    train_rows = _read(data / "sst2/train.jsonl")[: setting["train"]]
    validation_rows = _read(data / "sst2/validation.jsonl")[:validation]
    test_rows = _read(data / "sst2/test.jsonl")[:test]
    model, tokenizer = train_adapter(
        encoder_folder(),
        train_rows,
        classes=2,
        rank=8,
        epochs=setting["epochs"],
        learning_rate=1e-3,
        batch_size=16,
        seed=seed,
        validation=validation_rows if setting["stop_early"] else None,
        progress=False,
    )
    labels = [row["label"] for row in test_rows]
    result: dict[str, Any] = {"setting": name, **setting, "validation": validation, "test": test, "seed": seed}
    for structure in structures:
        la = LaplaceLoRA(model, LaplaceConfig(structure=structure, progress=False)).fit(
            batches(train_rows, tokenizer, 32)
        )
        result["train_accuracy"] = la.train_accuracy
        for tuner in ("evidence", "validation"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if tuner == "evidence":
                    la.tune_prior("evidence")
                else:
                    la.tune_prior("validation", batches(validation_rows, tokenizer, 32))
            predictive = la.predict_dataset(batches(test_rows, tokenizer, 32)).numpy()
            comparison = compare(
                {
                    "map": Probabilities(predictive["map_probabilities"]),
                    "laplace": Probabilities(predictive["probabilities"]),
                },
                labels,
            )
            result[f"{structure}, {tuner}"] = {
                **comparison.to_dict(),
                "prior_precision": la.prior_precision,
                "warned": any("evidence tuning" in str(w.message) for w in caught),
            }
    return result


def main() -> None:
    """Measure both settings over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/ as JSONL")
    parser.add_argument("--validation", type=int, default=200, help="validation sentences (default: 200)")
    parser.add_argument("--test", type=int, default=600, help="test sentences (default: 600)")
    parser.add_argument("--structures", nargs="+", default=["kron"], help="(default: kron)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    options = parser.parse_args()
    # What an earlier, interrupted run finished is kept.
    done = RESULTS / "sst2.json"
    results = json.loads(done.read_text())["results"] if done.exists() else []
    have = {(result["setting"], result["seed"]) for result in results}
    for name in SETTINGS:
        for seed in options.seeds:
            if (name, seed) not in have:
                results.append(
                    measure(name, options.data_dir, options.validation, options.test, seed, options.structures)
                )
                write_results("sst2", results)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
