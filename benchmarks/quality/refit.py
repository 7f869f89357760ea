"""Remedies that need the exact GGN or leave the trained weights: exact evidence, refitting, leaving one out.

No model is run: all from what dual.py and spectra.py have collected. Beside them stand the trained adapter and, as a
bound that nobody can have, the best of its precisions by the test examples.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from cases import CASES, CROSS_FITTED, FOLDS
from common import write_results
from compare import CHECKPOINTS, Collected, figures, paired
from dual_model import DualModel, Fit
from torch import Tensor

from adapters import folder_of, parser_of
from laplace_lora.evaluation import Probabilities, metrics
from laplace_lora.methods import fit_temperature
from laplace_lora.predictive import of_options

#: One precision for all, in 1 / weight^2.
PRECISIONS = tuple(10.0 ** (exponent / 2) for exponent in range(-6, 11))
TEMPERATURES = tuple(2.0 ** (exponent / 2) for exponent in range(-4, 13))
#: Beyond this many rows, precisions of roles take too long.
MOST_ROWS = 300
CHECKED = 20


def scored(fits: Iterable[Fit], by: Callable[[Fit], float]) -> int:
    """Return the position of the best fit."""
    return int(np.argmax([by(fit) for fit in fits]))


def mean_log(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean log probability of the labels."""
    return float(probabilities[torch.arange(len(labels)), labels].clamp(min=1e-300).log().mean())


def by_roles(model: DualModel, start: float) -> Tensor:
    """Maximise the refitted model's evidence over the precisions of lora_A, lora_B and the head."""

    def loss(x: np.ndarray) -> float:
        return -model.refitted(torch.tensor(np.exp(np.clip(x, -12.0, 15.0)))).evidence

    initial = np.full(len(model.kernel), np.log(start))
    found = scipy.optimize.minimize(loss, initial, method="Nelder-Mead", options={"maxiter": 150, "xatol": 0.02})
    return torch.tensor(np.exp(np.clip(found.x, -12.0, 15.0)))


def left_out_error(model: DualModel, precision: Tensor, fit: Fit) -> float:
    """Compare the formula for leaving one out with doing it: the largest error in logits of a few examples."""
    assert fit.left_out is not None
    kernel, _, _ = model.kernels(precision)
    errors = []
    for example in range(CHECKED):
        values = (kernel @ model.mode(kernel, [example])).view(len(model.labels), -1)
        logits = model.offset[example] + values[example] @ model.contrasts.T
        errors.append(float((logits - fit.left_out[0][example]).abs().max()))
    return max(errors)


def ways_of(model: DualModel) -> tuple[dict[str, tuple[Tensor, dict[str, Any]]], float]:
    """Return every way's test probabilities and what it chose, and the error of the formula for leaving one out."""
    grid = [torch.tensor([value], dtype=torch.float64) for value in PRECISIONS]
    found = {}
    kinds = {"trained": [model.at_trained(value) for value in grid], "refit": [model.refitted(value) for value in grid]}
    for kind, fits in kinds.items():
        best = scored(fits, lambda fit: fit.evidence)
        found[f"{kind}, evidence"] = (fits[best].probabilities(), {"precision": PRECISIONS[best]})
        best = scored(fits, lambda fit: mean_log(fit.probabilities(), model.test_labels))
        found[f"{kind}, best on test"] = (fits[best].probabilities(), {"precision": PRECISIONS[best]})
    fits = kinds["refit"]
    best = scored(fits, lambda fit: mean_log(of_options(*fit.left_out).probabilities, model.labels))  # type: ignore[misc]
    found["refit, leaving one out"] = (fits[best].probabilities(), {"precision": PRECISIONS[best]})
    if len(model.labels) * model.contrasts.shape[1] <= MOST_ROWS:
        precision = by_roles(model, PRECISIONS[scored(fits, lambda fit: fit.evidence)])
        found["refit, evidence, role"] = (model.refitted(precision).probabilities(), {"precision": precision.tolist()})
    return found, left_out_error(model, grid[best], fits[best])


def cross_fitted(whole: DualModel, folds: list[DualModel]) -> dict[str, tuple[Tensor, dict[str, Any]]]:
    """Choose precision and temperature on every fold's own examples: about the trained weights, refitted, and which."""
    found: dict[str, tuple[Tensor, dict[str, Any]]] = {}
    scores: dict[str, float] = {}
    for kind in ("trained", "refit"):
        table = np.zeros((len(PRECISIONS), len(TEMPERATURES)))
        for i, value in enumerate(PRECISIONS):
            precision = torch.tensor([value], dtype=torch.float64)
            for fold in folds:
                fit = fold.at_trained(precision) if kind == "trained" else fold.refitted(precision)
                for j, temperature in enumerate(TEMPERATURES):
                    logs = mean_log(fit.probabilities(temperature), fold.test_labels)
                    table[i, j] += logs * len(fold.test_labels)
        i, j = np.unravel_index(table.argmax(), table.shape)
        precision = torch.tensor([PRECISIONS[i]], dtype=torch.float64)
        fit = whole.at_trained(precision) if kind == "trained" else whole.refitted(precision)
        said = {"precision": PRECISIONS[i], "temperature": TEMPERATURES[j], "kind": kind}
        found[f"{kind}, cross-fitted"] = (fit.probabilities(TEMPERATURES[j]), said)
        scores[kind] = table.max()
    better = max(scores, key=lambda kind: scores[kind])
    return found | {"better of both, cross-fitted": found[f"{better}, cross-fitted"]}


def measure(work: Path, name: str, seed: int, checkpoint: str) -> dict[str, Any] | None:
    """Compare all ways on one adapter; None where its statistics are not there."""

    def folder(part: str) -> Path:
        return folder_of(work, name, seed, part) / "statistics" / checkpoint

    if not all((folder("all") / f"{kind}.safetensors").exists() for kind in ("dual", "spectra")):
        return None
    ways: dict[str, tuple[Tensor, dict[str, Any]]] = {}
    errors = []
    for centre in ("start", "zero"):
        model = DualModel(folder("all"), centre)
        found, error = ways_of(model)
        errors.append(error)
        ways |= {f"{key}, {centre}": value for key, value in found.items()}
    parts = [folder(f"fold{index}") for index in range(FOLDS)] if name in CROSS_FITTED else []
    if parts and all((part / "dual.safetensors").exists() for part in parts):
        ways |= cross_fitted(DualModel(folder("all"), "start"), [DualModel(part, "start") for part in parts])
    labels = model.test_labels.numpy()
    trained = Probabilities(model.trained_test.softmax(dim=1).numpy())
    most = Collected.of(folder("most"))
    if most is not None:
        temperature = fit_temperature(most.logits("held"), most.labels("held"))
        rival = metrics.log_losses(most.logits("test").softmax(temperature), labels)
    results: dict[str, Any] = {"map": figures(trained, labels)}
    for key, (values, chosen) in ways.items():
        probabilities = Probabilities(values.numpy())
        losses = metrics.log_losses(probabilities, labels), metrics.log_losses(trained, labels)
        hits = metrics.correct(trained, labels), metrics.correct(probabilities, labels)
        more = {"nll_over_map": paired(*losses), "accuracy_lost": paired(*hits), "chosen": chosen}
        if most is not None:
            more["nll_over_rival"] = paired(losses[0], rival)
        results[key] = {**figures(probabilities, labels), **more}
    return {
        "case": name,
        "seed": seed,
        "checkpoint": checkpoint,
        "left_out_error": max(errors),
        "methods": results,
    }


def main() -> None:
    """Compare on every adapter whose kernels are there."""
    options = parser_of(__doc__, needs_data=False).parse_args()
    results = []
    for name in CASES:
        for seed in options.seeds:
            for checkpoint in CHECKPOINTS:
                found = measure(options.work_dir.resolve(), name, seed, checkpoint)
                if found is not None:
                    results.append(found)
                    print(name, seed, checkpoint, flush=True)
    write_results("refit", results, show=False)


if __name__ == "__main__":
    main()
