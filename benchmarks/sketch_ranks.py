"""How much the sketch of wide Kronecker factors costs in accuracy, by rank, on real adapters.

For every adapter and rank: the mean functional variance of held-out logits over that of whole factors, with the
sketch's isotropic tail and without it; the largest deviation of one example's; the ratio of effective parameters that
`fit` warns by; and the bytes stored. The tail is spread over all directions; spreading it over those outside the sketch
alone is measured beside it. Beside it the paper's own low-rank factors, a running singular value decomposition
cut to ten directions, on batches of 4 as in the paper and of 20.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from common import write_results
from kfac_conventions import TASKS, WHOLE, Rows, test_jacobians, trained
from torch import Tensor

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.demo.training import batches
from laplace_lora.eigenbases import SpectralFactor
from laplace_lora.posterior import KroneckerPosterior, Posterior


def variances(posterior: Posterior, jacobians: list[Tensor], delta: float) -> Tensor:
    """Return every held-out example's mean variance of the contrasts."""
    posterior.assign_groups([0] * len(jacobians))
    accumulator = posterior.accumulator(torch.tensor([delta], dtype=torch.float64))
    for index, jacobian in enumerate(jacobians):
        for row in range(jacobian.shape[1]):
            accumulator.add(index, row, jacobian[:, row])
    return accumulator.covariance()[0].diagonal(dim1=1, dim2=2).mean(dim=1)


def compare(posterior: Posterior, whole: Posterior, jacobians: list[Tensor], delta: float) -> dict[str, float]:
    """Hold one posterior's variances against another's."""
    mine, its = variances(posterior, jacobians, delta), variances(whole, jacobians, delta)
    ratios = mine / its
    return {"mean": float(mine.mean() / its.mean()), "lowest": float(ratios.min()), "highest": float(ratios.max())}


def tail_outside(posterior: Posterior) -> Posterior:
    """Return the other way of spreading what a sketch missed: over the directions outside it alone."""
    assert isinstance(posterior, KroneckerPosterior)

    def moved(factor: SpectralFactor) -> SpectralFactor:
        if not factor.outside:
            return factor
        return SpectralFactor(
            factor.without_tail().values, factor.vectors, factor.tail * len(factor.vectors) / factor.outside
        )

    return KroneckerPosterior(posterior.shapes, *([moved(f) for f in s] for s in (posterior.left, posterior.right)))


def gamma(posterior: Posterior, delta: float) -> float:
    """Return the effective number of parameters."""
    return float(posterior.effective_parameters(torch.tensor([delta], dtype=torch.float64)).sum())


def measure(task: str, epochs: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train one adapter and compare all ranks on it, under every convention."""
    model, tokenizer, train, test = trained(task, epochs, options.data_dir, options.examples)
    classes = TASKS[task][1]
    about = {"task": task, "classes": classes, "examples": options.examples, "epochs": epochs}
    return [
        about | {"kfac": kfac, **ranks(model, tokenizer, train, test, kfac, classes, options)} for kfac in options.kfac
    ]


def ranks(
    model: Any, tokenizer: Any, train: Rows, test: Rows, kfac: str, classes: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Compare all ranks under one convention."""

    def fitted(batch_size: int = 20, **settings: Any) -> LaplaceLoRA:
        la = LaplaceLoRA(model, LaplaceConfig(progress=False, kfac=kfac, **settings))
        return la.fit(batches(train, tokenizer, batch_size))

    whole = fitted(factor_rank=WHOLE)
    jacobians = test_jacobians(whole, test, tokenizer, classes)
    candidates = {f"sketch, rank {rank}": fitted(factor_rank=rank) for rank in options.ranks}
    candidates |= {f"truncated SVD, rank 10, batches of {size}": fitted(size, structure="kron_svd") for size in (4, 20)}
    rows = []
    for delta in options.deltas:
        for name, la in candidates.items():
            bare = la.posterior.without_tail()
            bare.assign_groups([0] * len(jacobians))
            row: dict[str, Any] = {"delta": delta, "factors": name, "bytes": la.posterior.nbytes}
            row["with_tail"] = compare(la.posterior, whole.posterior, jacobians, delta)
            row["without_tail"] = compare(bare, whole.posterior, jacobians, delta)
            other = tail_outside(la.posterior)
            row["tail_outside"] = compare(other, whole.posterior, jacobians, delta)
            row["effective_parameters"] = {
                key: gamma(p, delta)
                for key, p in (("with_tail", la.posterior), ("without_tail", bare), ("whole", whole.posterior))
            }
            rows.append(row)
    return {"train_accuracy": whole.train_accuracy, "whole_bytes": whole.posterior.nbytes, "rows": rows}


def main() -> None:
    """Measure all tasks, stages and conventions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/ and mmlu_cs/ as JSONL")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), help="(default: all)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 12], help="stages (default: 3 12)")
    parser.add_argument("--kfac", nargs="+", default=["fitted", "expand"], help="(default: fitted expand)")
    parser.add_argument("--examples", type=int, default=100, help="training and test examples each (default: 100)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64, 128], help="(default: 8 ... 128)")
    parser.add_argument("--deltas", type=float, nargs="+", default=[1.0, 10.0], help="(default: 1 10)")
    options = parser.parse_args()
    results = []
    for task in options.tasks:
        for epochs in options.epochs:
            results += measure(task, epochs, options)
            write_results("sketch_ranks", results, show=False)  # what is done stays, should the rest be cut short
            print(task, epochs, "done", flush=True)


if __name__ == "__main__":
    main()
