"""What a value of the prior costs once a validation set's spectrum is there, beside a pass for every value.

Two models with LoRA on query and value and a head of K classes, random texts: all on the same examples in the same
process, one after the other, several times; ratios are of medians.
"""

import argparse
from typing import Any

import torch
from common import llama_30m, median_seconds, minilm, write_results
from torch import Tensor

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.prior import choose_jointly, mean_nll, score

MODELS = {"minilm": minilm, "llama_30m": llama_30m}
#: Model, classes, structure.
CASES = (
    ("minilm", 2, "kron"),
    ("minilm", 4, "kron"),
    ("minilm", 2, "diag"),
    ("minilm", 2, "exact"),
    ("llama_30m", 2, "kron"),
)


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


def measure(name: str, classes: int, structure: str, examples: int, repeats: int) -> dict[str, Any]:
    """Time one pass at one prior, the pass that collects the spectrum, one prior from it, and the whole choice."""
    model = MODELS[name](classes)
    config = LaplaceConfig(structure=structure, progress=False)  # type: ignore[arg-type]
    la = LaplaceLoRA(model, config).fit(batches(64, classes, 0))
    loader = batches(examples, classes, 1)
    state = la._state
    held_out = state.held_out(model, loader)

    def again() -> float:
        return mean_nll(la.predict_dataset(loader), held_out.labels)

    def cached() -> float:
        with torch.no_grad():
            return float(score([held_out], state.precision, 1.0))

    chosen = choose_jointly([held_out], state.precision)
    one_pass, collecting, one_value, whole = (
        median_seconds(again, repeats),
        median_seconds(lambda: state.held_out(model, loader), repeats),
        median_seconds(cached, 3 * repeats),
        median_seconds(lambda: choose_jointly([held_out], state.precision), repeats),
    )
    result: dict[str, Any] = {
        "model": name,
        "classes": classes,
        "structure": structure,
        "examples": examples,
        "seconds": {
            "pass at one prior": one_pass,
            "pass that collects": collecting,
            "one prior and temperature from it": one_value,
            "the choice of both": whole,
        },
        "values_per_pass": one_pass / one_value,
        "choice_over_pass": whole / one_pass,
        "collecting_over_pass": collecting / one_pass,
        "scores_in_the_choice": chosen.evaluations,
        "error_in_nll": abs(again() - cached()),
        "bytes_per_example": held_out.spectrum.table.nbytes / examples,  # type: ignore[attr-defined]
    }
    return result


def main() -> None:
    """Measure two, four classes, several structures and models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200, help="validation examples (default: 200)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats (default: 5)")
    options = parser.parse_args()
    found = [measure(*case, options.examples, options.repeats) for case in CASES]
    write_results("spectrum", found)


if __name__ == "__main__":
    main()
