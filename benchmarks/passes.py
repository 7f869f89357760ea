"""Time fit and predict in units of the model's own passes.

F is a forward pass of the batch, B a backward pass that forms the LoRA weights' gradients; dropout 0, Kronecker
factors of rank 64. The bars, with LoRA on q and v / on all linear layers:

    predict                    at most 1.08 / 1.15 x (1 F + (K-1) B); of options scored one by one, x (1 F + 1 B)
    fit, exact Fisher          at most 1.08 / 1.15 x (1 F + (K-1) B)
    fit, one-pass Fisher       at most 1.08 / 1.15 x a LoRA training step without the optimizer

Fit is timed batch by batch, without the decomposition at the end, which is once per data set; that is reported by
itself. Everything is measured in turn, in one process per model.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import MODELS, TARGETS, interleaved, option_batch, paired_ratio, random_batch, write_results
from torch import Tensor, nn

from laplace_lora import LaplaceConfig, LaplaceLoRA, OptionScores
from laplace_lora.curvature import Curvature, fit_curvature
from laplace_lora.likelihoods import contrast_basis
from laplace_lora.structures import STRUCTURES

BARS = {"q/v": 1.08, "all": 1.15}
#: Training Jacobians kept for the check after evidence tuning: of 40 examples, whatever their number; not per batch.
SETTINGS: dict[str, Any] = {"progress": False, "factor_rank": 64, "train_check_bytes": 0}


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


def option_passes(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One forward pass of all options' rows, and one backward pass of their scores' sum."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = {key: batch[key].flatten(0, 1) for key in ("input_ids", "attention_mask")}

    def run() -> None:
        if "completion_mask" not in batch:
            scores = model(**{key: batch[key] for key in rows}).logits
        else:
            logits = model(**rows, logits_to_keep=9).logits[:, :-1]
            scores = logits.log_softmax(dim=-1).gather(2, rows["input_ids"][:, -8:, None])
        torch.autograd.grad(scores.sum(), trained)

    return run


def training_step(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """One step of LoRA fine-tuning without the optimizer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run() -> None:
        torch.autograd.grad(model(**batch).loss, trained)

    return run


def fold_only(la: LaplaceLoRA, batch: dict[str, Tensor]) -> Curvature:
    """Fit's share per batch: everything but the decomposition at the end, which is once per data set."""
    covered = la._covered
    curvature = STRUCTURES[la.config.structure].curvature(covered.shapes, la.config)
    fit_curvature(la.model, covered.sites, curvature, la.config, la.readout, covered.reader.likelihood, [batch])
    return curvature


def finalise_seconds(la: LaplaceLoRA, batch: dict[str, Tensor]) -> float:
    """Time the end of a fit: statistics to posterior."""
    curvature = fold_only(la, batch)
    start = time.perf_counter()
    kind = STRUCTURES[la.config.structure].posterior
    kind.from_statistics(la._covered.shapes, curvature.finalise(), curvature.dtype)
    return time.perf_counter() - start


def measure(name: str, adapted: str, classes: int, repeats: int) -> dict[str, Any]:
    """Measure a classifier at one number of classes."""
    model = MODELS[name](classes, adapted=adapted)
    batch = random_batch(model, classes)
    estimators = {
        key: LaplaceLoRA(model, LaplaceConfig(**SETTINGS, fisher=fisher))
        for key, fisher in (("fit_exact", "exact"), ("fit_one_pass", "rademacher"))
    }
    fitted = LaplaceLoRA(model, LaplaceConfig(**SETTINGS)).fit([random_batch(model, classes, seed=1)])
    exact = LaplaceLoRA(model, LaplaceConfig(progress=False, train_check_bytes=0, structure="exact"))
    exact.fit([random_batch(model, classes, seed=1)])
    calls = {
        "passes": reference_passes(model, batch, classes),
        "predict": lambda: fitted.predict(batch),
        "training_step": training_step(model, batch),
        "fit_exact": lambda: fold_only(estimators["fit_exact"], batch),
        "fit_one_pass": lambda: fold_only(estimators["fit_one_pass"], batch),
        "exact_structure_predict": lambda: exact.predict(batch),
        "exact_structure_fit": lambda: fold_only(exact, batch),
    }
    seconds = interleaved(calls, repeats)
    over = {name: "training_step" if name == "fit_one_pass" else "passes" for name in calls if "_step" not in name}
    return {
        "model": name,
        "adapted": adapted,
        "classes": classes,
        **summed_up(fitted, batch, seconds, over, BARS[adapted]),
        "finalise_seconds": finalise_seconds(estimators["fit_exact"], batch),
        "posterior_bytes": {"kron": fitted.posterior.nbytes, "exact": exact.posterior.nbytes},
    }


def summed_up(
    la: LaplaceLoRA, batch: dict[str, Tensor], seconds: dict[str, list[float]], over: dict[str, str], bar: float
) -> dict[str, Any]:
    """Sum up what was timed of one model."""
    return {
        "readout": la.readout.name,
        "batch": list(batch["input_ids"].shape),
        "repeats": len(seconds["passes"]),
        "bar": bar,
        "median_seconds": {call: statistics.median(times) for call, times in seconds.items()},
        "ratios": {call: paired_ratio(seconds, call, to) for call, to in over.items() if call != "passes"},
        "weights": sum(shape.size for shape in la._covered.shapes),
    }


def measure_options(name: str, adapted: str, options: int, repeats: int) -> dict[str, Any]:
    """Measure options scored one by one."""
    model = MODELS[name](options, adapted=adapted, options=True)
    batch = option_batch(model, options)
    estimator = LaplaceLoRA(model, LaplaceConfig(**SETTINGS), readout=OptionScores())
    fitted = LaplaceLoRA(model, LaplaceConfig(**SETTINGS), readout=OptionScores())
    fitted.fit([option_batch(model, options, seed=1)])
    calls = {
        "passes": option_passes(model, batch),
        "predict": lambda: fitted.predict(batch),
        "fit_exact": lambda: fold_only(estimator, batch),
    }
    seconds = interleaved(calls, repeats)
    return {
        "model": name,
        "adapted": adapted,
        "classes": options,
        **summed_up(fitted, batch, seconds, dict.fromkeys(("predict", "fit_exact"), "passes"), BARS[adapted]),
        "finalise_seconds": finalise_seconds(estimator, batch),
        "posterior_bytes": {"kron": fitted.posterior.nbytes},
    }


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="interleaved repeats, at least 11 (default: 15)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="(default: all)")
    parser.add_argument("--adapted", nargs="+", default=list(TARGETS), choices=list(TARGETS), help="(default: all)")
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 4, 5], help="(default: 2 4 5)")
    parser.add_argument("--skip-options", action="store_true", help="leave the options scored one by one out")
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    options = parser.parse_args()
    results = []
    for name in options.models:
        for adapted in options.adapted:
            found = [measure(name, adapted, classes, options.repeats) for classes in options.classes]
            if not options.skip_options:
                found.append(measure_options(name, adapted, 4, options.repeats))
            for result in found:
                ratios = {call: round(ratio["median"], 3) for call, ratio in result["ratios"].items()}
                print(name, adapted, result["readout"], f"K={result['classes']}", ratios, flush=True)
            results += found
            if not options.dry:
                # What is done stays, should the rest be cut short.
                write_results("passes", {"passes": results}, show=False)


if __name__ == "__main__":
    main()
