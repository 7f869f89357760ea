"""How much of the demo's calibration error is the luck of its test set: one adapter, many test sets.

On development seeds (100 and above, none of the reported five). Every adapter is trained and tuned as in the demo, then
measured on several disjoint test sets of the demo's size, and on all of them at once.
"""

import argparse
import dataclasses
from typing import Any

import numpy as np
from common import write_results

from laplace_lora import LaplaceLoRA
from laplace_lora.demo import DemoConfig
from laplace_lora.demo.encoder import encoder_folder
from laplace_lora.demo.training import batches, train_adapter
from laplace_lora.evaluation.metrics import ece, ece_floor
from laplace_lora.tasks import LABEL_NAMES, Review, make_splits


def measure(seed: int, sets: int) -> dict[str, Any]:
    """Train once, tune once, and test on each set."""
    config = DemoConfig()
    sizes = {"train": config.train, "test": sets * config.test, "validation": config.validation}
    splits = make_splits(sizes, seed)
    model, tokenizer = train_adapter(
        encoder_folder(),
        rows(splits["train"]),
        classes=len(LABEL_NAMES),
        rank=config.rank,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        head_learning_rate=config.head_learning_rate,
        batch_size=config.batch_size,
        seed=seed,
        progress=False,
    )
    la = LaplaceLoRA(model, dataclasses.replace(config.laplace, progress=False))
    la.fit(batches(rows(splits["train"]), tokenizer, 32))
    la.tune_prior("validation", batches(rows(splits["validation"]), tokenizer, 32))
    probabilities = la.predict_dataset(batches(rows(splits["test"]), tokenizer, 32)).numpy()["probabilities"]
    labels = np.array([review.label for review in splits["test"]])
    parts = [slice(i * config.test, (i + 1) * config.test) for i in range(sets)]
    return {
        "seed": seed,
        "train_accuracy": la.train_accuracy,
        "prior_precision": la.prior_precision,
        "sets": [
            {"n": config.test, "ece": ece(probabilities[p], labels[p]), "ece_floor": ece_floor(probabilities[p])}
            for p in parts
        ],
        "together": {"n": len(labels), "ece": ece(probabilities, labels), "ece_floor": ece_floor(probabilities)},
    }


def rows(reviews: list[Review]) -> list[dict[str, Any]]:
    """Keep text and label."""
    return [{"text": review.text, "label": review.label} for review in reviews]


def main() -> None:
    """Measure every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[120, 121, 122, 123], help="(default: 120 to 123)")
    parser.add_argument("--sets", type=int, default=8, help="test sets per adapter (default: 8)")
    options = parser.parse_args()
    results = []
    for seed in options.seeds:
        results.append(measure(seed, options.sets))
        write_results("demo_calibration", results)


if __name__ == "__main__":
    main()
