"""What a value of the prior costs once a validation set's spectrum is there, beside a pass for every value.

MiniLM with LoRA and a head of K classes, random texts of 32 tokens; both ways on the same examples in the same process,
one after the other, several times; ratios are of medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import minilm, write_results
from torch import Tensor

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.prior import SCALES, mean_nll
from laplace_lora.tuning import mean_predictive


def batches(examples: int, classes: int, seed: int) -> list[dict[str, Tensor]]:
    """Random token ids, 32 a text, 16 texts a batch."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, examples, 16):
        size = min(16, examples - start)
        ids = torch.randint(1000, 5000, (size, 32), generator=generator)
        labels = torch.randint(0, classes, (size,), generator=generator)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median time."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(classes: int, structure: str, examples: int, repeats: int) -> dict[str, Any]:
    """Time one pass at one prior, the pass that collects the spectrum, and one prior from the spectrum."""
    model = minilm(classes)
    la = LaplaceLoRA(model, LaplaceConfig(structure=structure, progress=False)).fit(batches(64, classes, 0))
    held_out = batches(examples, classes, 1)
    state = la._state
    reader = state.covered.reader
    mean, spectrum, labels = state.linearised(model).spectrum(held_out, reader, None)
    precision = state.precision

    def again() -> float:
        return mean_nll(la.predict_dataset(held_out), labels)

    def cached(scale: float = 1.0) -> float:
        return mean_nll(mean_predictive(mean, spectrum.covariance(precision * scale), la.config), labels)

    one_pass, collecting, one_value = (
        seconds(again, repeats),
        seconds(lambda: state.linearised(model).spectrum(held_out, reader, None), repeats),
        seconds(cached, 3 * repeats),
    )
    return {
        "classes": classes,
        "structure": structure,
        "examples": examples,
        "seconds": {"pass at one prior": one_pass, "spectrum": collecting, "one prior from it": one_value},
        "passes_per_value": one_pass / one_value,
        "spectrum_over_pass": collecting / one_pass,
        "error_in_nll": abs(again() - cached()),
        "bytes_per_example": spectrum.table.nbytes / examples,
        "values_tried": len(SCALES),
    }


def main() -> None:
    """Measure two, four classes, several structures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200, help="validation examples (default: 200)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats (default: 5)")
    options = parser.parse_args()
    cases = [(2, "kron"), (4, "kron"), (2, "diag"), (2, "exact")]
    write_results("spectrum", [measure(*case, options.examples, options.repeats) for case in cases])


if __name__ == "__main__":
    main()
