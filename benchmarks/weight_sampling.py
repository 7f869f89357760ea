"""Weight sampling beside the linearised predictive: one adapter at several stages of its training, the same posterior.

The run is one that ``laplace-lora train --save-every`` left behind (benchmarks/quality makes such runs): a folder with
train.jsonl and adapter/checkpoints/. At each checkpoint a Kronecker posterior is fitted to the run's training rows and
its prior tuned by the evidence; then both predictives are made from it, on the same test sentences.
"""

import argparse
import json
import re
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from common import write_results

from laplace_lora import LaplaceConfig, LaplaceLoRA, load_adapter
from laplace_lora.demo.encoder import encoder_folder
from laplace_lora.demo.training import batches
from laplace_lora.evaluation import Probabilities, compare
from laplace_lora.methods.weight_sampling import weight_sampling

#: Whole factors for all inputs of the encoder's width; at the default rank `fit` warns that variances rest on a guess.
FACTOR_RANK = 256


def measure(
    checkpoint: Path, train: list[dict[str, Any]], test: list[dict[str, Any]], samples: list[int]
) -> dict[str, Any]:
    """Fit at one checkpoint and compare MAP, the linearised predictive and weight sampling."""
    model, tokenizer, _ = load_adapter(checkpoint, base=encoder_folder())
    la = LaplaceLoRA(model, LaplaceConfig(factor_rank=FACTOR_RANK, progress=False))
    la.fit(batches(train, tokenizer, 32))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        la.tune_prior("evidence")
    start = time.perf_counter()
    predictive = la.predict_dataset(batches(test, tokenizer, 32)).numpy()
    seconds = {"laplace": time.perf_counter() - start}
    methods = {
        "map": Probabilities(predictive["map_probabilities"]),
        "laplace": Probabilities(predictive["probabilities"]),
    }
    for count in samples:
        start = time.perf_counter()
        methods[f"weight sampling, {count}"] = weight_sampling(la, batches(test, tokenizer, 32), count)
        seconds[f"weight sampling, {count}"] = time.perf_counter() - start
    comparison = compare(methods, [row["label"] for row in test], subject="laplace")
    spread = predictive["covariance"][:, 0, 0] * 4.0  # the difference of two centred logits is twice either
    return {
        "checkpoint": checkpoint.name,
        "prior_precision": la.prior_precision,
        "warned": any("evidence tuning" in str(w.message) for w in caught),
        "train_accuracy": la.train_accuracy,
        "median_logit_sd": float(torch.tensor(spread).sqrt().median()),
        "seconds": seconds,
        **comparison.to_dict(),
    }


def main() -> None:
    """Measure the checkpoint after a third of the training, and the last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True, help="folder with train.jsonl and adapter/checkpoints/")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/ as JSONL")
    parser.add_argument("--test", type=int, default=300, help="test sentences (default: 300)")
    parser.add_argument("--samples", type=int, nargs="+", default=[10, 100], help="adapters drawn (default: 10 100)")
    options = parser.parse_args()
    train = _read(options.run_dir / "train.jsonl")
    # In the order of their lengths, which leaves little padding to compute.
    test = sorted(_read(options.data_dir / "sst2/test.jsonl")[: options.test], key=lambda row: len(row["text"]))
    folders = sorted((options.run_dir / "adapter/checkpoints").glob("checkpoint-*"), key=_step)
    chosen = [folders[len(folders) // 3], folders[-1]]
    results: list[dict[str, Any]] = []
    for folder in chosen:
        results.append(measure(folder, train, test, options.samples))
        write_results("weight_sampling", {"train": len(train), "test": len(test), "checkpoints": results}, show=False)


def _step(folder: Path) -> int:
    found = re.search(r"\d+$", folder.name)
    return int(found.group()) if found else -1


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
