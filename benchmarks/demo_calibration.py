"""How much of the demo's calibration error is the luck of its test set: one adapter, many test sets.

On development seeds (100 and above, none of the reported five). Every adapter is trained as in the demo, its prior
chosen on fewer and on more validation sentences, and then measured on several disjoint test sets of the demo's size
and on all of them at once.
"""

import argparse
import dataclasses
from typing import Any

import numpy as np
from common import write_results

from laplace_lora import LaplaceLoRA
from laplace_lora.demo import DemoConfig
from laplace_lora.demo.run import train_as_configured
from laplace_lora.demo.training import batches
from laplace_lora.evaluation import Probabilities, score
from laplace_lora.tasks import Review, make_splits


def measure(seed: int, sets: int, validations: list[int]) -> list[dict[str, Any]]:
    """Train once, tune on every number of validation sentences, and test on each set."""
    config = DemoConfig()
    sizes = {"train": config.train, "test": sets * config.test, "validation": max(validations)}
    splits = make_splits(sizes, seed)
    model, tokenizer = train_as_configured(config, rows(splits["train"]), seed, progress=False)
    labels = np.array([review.label for review in splits["test"]])
    parts = [slice(i * config.test, (i + 1) * config.test) for i in range(sets)]
    results = []
    for count in validations:
        la = LaplaceLoRA(model, dataclasses.replace(config.laplace, progress=False))
        la.fit(batches(rows(splits["train"]), tokenizer, 32))
        la.tune_prior("validation", batches(rows(splits["validation"][:count]), tokenizer, 32))
        probabilities = la.predict_dataset(batches(rows(splits["test"]), tokenizer, 32)).numpy()["probabilities"]
        results.append(
            {
                "seed": seed,
                "validation": count,
                "train_accuracy": la.train_accuracy,
                "prior_precision": la.prior_precision,
                "sets": [_calibration(probabilities[part], labels[part]) for part in parts],
                "together": _calibration(probabilities, labels),
            }
        )
    return results


def _calibration(probabilities: Any, labels: Any) -> dict[str, float | None]:
    scores = score(Probabilities(probabilities), labels).to_dict()
    return {"n": len(labels)} | {name: scores[name] for name in ("ece", "ece_floor", "confidence", "accuracy")}


def rows(reviews: list[Review]) -> list[dict[str, Any]]:
    """Keep text and label."""
    return [{"text": review.text, "label": review.label} for review in reviews]


def main() -> None:
    """Measure every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[120, 121, 122, 123], help="(default: 120 to 123)")
    parser.add_argument("--sets", type=int, default=8, help="test sets per adapter (default: 8)")
    parser.add_argument(
        "--validation", type=int, nargs="+", default=[150, 300, 600], help="sentences to tune on (default: 150 300 600)"
    )
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for seed in options.seeds:
        results += measure(seed, options.sets, options.validation)
        write_results("demo_calibration", results)


if __name__ == "__main__":
    main()
