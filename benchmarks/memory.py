"""Peak resident memory of fit and predict beside a LoRA training step, each in a process of its own.

A figure is the process's high-water mark less its resident size before the call; malloc returns freed blocks early, so
that the mark says what was in use. Median of three. The bound:

    fit        at most 1.1 x a training step's + the stored posterior + the sums that it is made of
    predict    at most 1.1 x a training step's + the stored posterior + 4 B (K-1) P bytes of Jacobians
"""

import argparse
import statistics
from typing import Any

from common import MODELS, TARGETS, random_batch, write_results
from forked import in_own_process, peak_bytes, return_freed_blocks
from passes import SETTINGS, fold_only, training_step

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.curvature import Curvature, KroneckerCurvature

STEPS = ("training_step", "fit_exact", "fit_one_pass", "predict", "exact_structure_fit", "exact_structure_predict")


def held_bytes(curvature: Curvature) -> int:
    """Return the bytes of a fold's sums."""
    assert isinstance(curvature, KroneckerCurvature)
    return sum(tensor.nbytes for factor in (*curvature.left, *curvature.right) for tensor in factor.held)


def run_step(name: str, adapted: str, classes: int, step: str) -> dict[str, int]:
    """Do one step in this process; return its peak and the bytes that the bound names."""
    return_freed_blocks()
    model = MODELS[name](classes, adapted=adapted)
    batch = random_batch(model, classes)
    settings: dict[str, Any] = SETTINGS | {"fisher": "rademacher" if step == "fit_one_pass" else "exact"}
    if step.startswith("exact_structure"):
        settings = {"progress": False, "train_check_bytes": 0, "structure": "exact"}
    la = LaplaceLoRA(model, LaplaceConfig(**settings))
    # Starts threads, loads code and fills caches on a batch of another size.
    la.fit([random_batch(model, classes, size=1, length=8, seed=1)]).predict(random_batch(model, classes, 1, 8))
    if step == "training_step":
        peak = peak_bytes(training_step(model, batch))  # in eval mode: dropout 0, as in everything it is compared with
    elif step.endswith("predict"):
        peak = peak_bytes(lambda: la.predict(batch))
    else:
        peak = peak_bytes(lambda: la.fit([batch]))
    weights = sum(shape.size for shape in la._covered.shapes)
    return {
        "peak_bytes": peak,
        "stored_posterior_bytes": la.posterior.nbytes,
        "sums_bytes": held_bytes(fold_only(la, batch)) if step.startswith("fit") else 0,
        "jacobian_bytes": 4 * len(batch["input_ids"]) * (classes - 1) * weights if step.endswith("predict") else 0,
    }


def main() -> None:
    """Run every step three times in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="(default: all)")
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 4], help="numbers of classes (default: 2 4)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: 3)")
    options = parser.parse_args()
    results = []
    for name in options.models:
        for adapted in TARGETS:
            for classes in options.classes:
                row: dict[str, Any] = {"model": name, "adapted": adapted, "classes": classes, "batch": [8, 96]}
                for step in STEPS:
                    found = [in_own_process(run_step, name, adapted, classes, step) for _ in range(options.repeats)]
                    row[step] = found[0] | {"peak_bytes": statistics.median(f["peak_bytes"] for f in found)}
                for step in STEPS[1:4]:
                    parts = row[step]
                    beside = sum(parts[key] for key in ("stored_posterior_bytes", "sums_bytes", "jacobian_bytes"))
                    parts["bound_bytes"] = 1.1 * row["training_step"]["peak_bytes"] + beside
                results.append(row)
                within = {step: round(row[step]["peak_bytes"] / row[step]["bound_bytes"], 3) for step in STEPS[1:4]}
                print(name, adapted, f"K={classes}", "peak over its bound:", within, flush=True)
                write_results("memory", results, show=False)  # what is done stays, should the rest be cut short


if __name__ == "__main__":
    main()
