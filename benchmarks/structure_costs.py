"""Fit and predict of every posterior structure, in forward passes of the same batch.

And of posteriors over the top m of L layers, whose backward passes end there: beside what 1 F + (K-1) m/L B comes to,
F and B as measured here. Everything is timed in turn, in one process; fit batch by batch, without the decomposition at
its end, which is once per data set.
"""

import argparse
import statistics
from typing import Any

import torch
from common import interleaved, minilm, paired_ratio, random_batch, write_results
from passes import fold_only, reference_passes

from laplace_lora import LaplaceConfig, LaplaceLoRA

#: Structures, by the name of their row.
STRUCTURES: dict[str, dict[str, Any]] = {
    "kron": {},
    "kron_svd": {"structure": "kron_svd", "kfac": "expand"},
    "ekfac": {"structure": "ekfac"},
    "kron_low_rank": {"structure": "kron_low_rank"},
    "low_rank": {"structure": "low_rank"},
    "exact": {"structure": "exact"},
    "diag": {"structure": "diag"},
    "isotropic": {"structure": "isotropic"},
    "last_layer": {"structure": "last_layer"},
}
LAYERS = 6
#: Whose predictions cost the more, the more examples (up to their rank) were fitted to; and how many batches these get.
JOINT, MANY, FEW = ("kron_low_rank", "low_rank", "exact"), 32, 4


def estimators(model: Any, settings: dict[str, dict[str, Any]], classes: int) -> dict[str, LaplaceLoRA]:
    """Fit one posterior each."""
    fixed: dict[str, Any] = {"progress": False, "train_check_bytes": 0}
    batches = [random_batch(model, classes, seed=seed) for seed in range(1, MANY + 1)]
    return {
        name: LaplaceLoRA(model, LaplaceConfig(**fixed, **own)).fit(batches[: MANY if name in JOINT else FEW])
        for name, own in settings.items()
    }


def measure(classes: int, repeats: int) -> dict[str, Any]:
    """Measure a classifier at one number of classes."""
    model = minilm(classes)
    batch = random_batch(model, classes)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    top = {f"top {m}": {"layers_to_transform": tuple(range(-m, 0))} for m in range(1, LAYERS + 1)}
    fitted = estimators(model, STRUCTURES | top, classes)

    def forward() -> None:
        with torch.no_grad():
            model(**inputs)

    calls: dict[str, Any] = {"forward": forward, "passes": reference_passes(model, batch, classes)}
    for name, la in fitted.items():
        calls[f"predict, {name}"] = lambda la=la: la.predict(batch)
        if name in STRUCTURES:
            calls[f"fit, {name}"] = lambda la=la: fold_only(la, batch)
    seconds = interleaved(calls, repeats)
    ratios = {name: paired_ratio(seconds, name, "forward") for name in calls if name != "forward"}
    backward = ratios["passes"]["median"] - 1.0
    return {
        "classes": classes,
        "batch": list(batch["input_ids"].shape),
        "repeats": repeats,
        "examples": {"joint": 8 * MANY, "others": 8 * FEW},
        "forward_seconds": statistics.median(seconds["forward"]),
        "ratios": ratios,
        "top_layers": [
            {"layers": m, "predict": ratios[f"predict, top {m}"]["median"], "expected": 1.0 + backward * m / LAYERS}
            for m in range(1, LAYERS + 1)
        ],
    }


def main() -> None:
    """Measure at several numbers of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4], help="(default: 2 4)")
    parser.add_argument("--repeats", type=int, default=11, help="(default: 11)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    write_results("structure_costs", [measure(classes, options.repeats) for classes in options.classes])


if __name__ == "__main__":
    main()
