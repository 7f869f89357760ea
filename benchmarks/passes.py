"""Time fit and predict in units of the model's own passes.

The bar: predict at most 1.08 x (1 forward + (K-1) backward to the LoRA weights), q and v adapted, dropout 0. Fit is
reported beside a LoRA training step without the optimizer.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from common import MODELS, interleaved, paired_ratio, random_batch, write_results
from torch import Tensor, nn

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.curvature import KroneckerCurvature, fit_curvature
from laplace_lora.likelihoods import contrast_basis


def reference_passes(model: nn.Module, batch: dict[str, Tensor], classes: int) -> Callable[[], None]:
    """One forward pass and K-1 backward passes that form the LoRA weights' gradients."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    contrasts = contrast_basis(classes).float()

    def run() -> None:
        values = (model(**inputs).logits @ contrasts).sum(dim=0)
        for k in range(classes - 1):
            torch.autograd.grad(values[k], trained, retain_graph=k < classes - 2)

    return run


def training_step(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One step of LoRA fine-tuning without the optimizer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run() -> None:
        torch.autograd.grad(model(**batch).loss, trained)

    return run


def measure(name: str, classes: int, repeats: int) -> dict[str, Any]:
    """Measure one model at one number of classes."""
    model = MODELS[name](classes)
    batch = random_batch(model, classes)
    fitted = LaplaceLoRA(model, LaplaceConfig(progress=False)).fit([random_batch(model, classes, seed=1)])
    estimators = {
        fisher: LaplaceLoRA(model, LaplaceConfig(progress=False, fisher=fisher)) for fisher in ("exact", "rademacher")
    }
    calls = {
        "passes": reference_passes(model, batch, classes),
        "predict": lambda: fitted.predict(batch),
        "training_step": training_step(model, batch),
        "batches_exact": lambda: fold_only(estimators["exact"], batch),
        "batches_one_pass": lambda: fold_only(estimators["rademacher"], batch),
    }
    seconds = interleaved(calls, repeats)
    return {
        "model": name,
        "classes": classes,
        "batch": list(batch["input_ids"].shape),
        "repeats": repeats,
        "median_seconds": {call: statistics.median(times) for call, times in seconds.items()},
        "predict_over_passes": paired_ratio(seconds, "predict", "passes"),
        "fit_exact_over_passes": paired_ratio(seconds, "batches_exact", "passes"),
        "fit_one_pass_over_training_step": paired_ratio(seconds, "batches_one_pass", "training_step"),
    }


def fold_only(la: LaplaceLoRA, batch: dict[str, Tensor]) -> None:
    """Fit's share per batch: everything but the decomposition at the end, which is once per data set."""
    curvature = KroneckerCurvature(la._covered.shapes, la.config)
    fit_curvature(la.model, la._covered.sites, curvature, la.config, la.readout, la._covered.reader.likelihood, [batch])


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="interleaved repeats, at least 11 (default: 15)")
    options = parser.parse_args()
    results = [measure(name, classes, options.repeats) for name in MODELS for classes in (2, 4)]
    write_results("passes", {"passes": results})


if __name__ == "__main__":
    main()
