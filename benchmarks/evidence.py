"""Time evidence tuning beside the fit it follows. The bar: below 1 % of it."""

import argparse
import time
import warnings
from typing import Any

from common import MODELS, random_batch, write_results

from laplace_lora import LaplaceConfig, LaplaceLoRA


def evidence_share(name: str, classes: int, batches: int) -> dict[str, Any]:
    """Time evidence tuning beside a whole fit."""
    model = MODELS[name](classes)
    data = [random_batch(model, classes, seed=seed) for seed in range(batches)]
    la = LaplaceLoRA(model, LaplaceConfig(progress=False))
    start = time.perf_counter()
    la.fit(data)
    fit_seconds = time.perf_counter() - start
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random labels: the check rightly speaks up
        la.tune_prior("evidence")
    tune_seconds = time.perf_counter() - start
    return {
        "model": name,
        "classes": classes,
        "examples": 8 * batches,
        "fit_seconds": fit_seconds,
        "evidence_seconds": tune_seconds,
        "evidence_over_fit": tune_seconds / fit_seconds,
    }


def main() -> None:
    """Measure two and four classes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=40, help="batches of 8 in the fit (default: 40)")
    options = parser.parse_args()
    write_results("evidence", [evidence_share("minilm", classes, options.batches) for classes in (2, 4)])


if __name__ == "__main__":
    main()
