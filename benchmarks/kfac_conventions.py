"""Hold the Kronecker conventions against the exact GGN on real adapters at several stages of training.

For every adapter: the mean functional variance of held-out logits under each posterior, divided by that of
the exact block-diagonal GGN (1 is right for a posterior whose matrices are independent) and by that of the
exact joint GGN, at one prior precision for all matrices.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import write_results
from torch import Tensor

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.demo.encoder import encoder_folder
from laplace_lora.demo.training import batches, train_adapter
from laplace_lora.jacobians import jacobian_pass
from laplace_lora.likelihoods import contrast_basis
from laplace_lora.posterior import ExactPosterior, KroneckerPosterior, Posterior
from laplace_lora.tasks import make_splits

Rows = list[dict[str, Any]]
#: A rank that no factor is wider than: here conventions are compared, not sketches.
WHOLE = 10_000


def reviews(_: Path, count: int) -> tuple[Rows, Rows]:
    """The demo's made-up reviews, two classes."""
    splits = make_splits({"train": count, "test": count}, seed=200)
    train, test = ([{"text": r.text, "label": r.label} for r in splits[name]] for name in ("train", "test"))
    return train, test


def sst2(data: Path, count: int) -> tuple[Rows, Rows]:
    """Movie reviews, two classes."""
    return _read(data / "sst2/train.jsonl")[:count], _read(data / "sst2/test.jsonl")[:count]


def subjects(data: Path, count: int) -> tuple[Rows, Rows]:
    """Examination questions in computer science, four subjects to tell apart."""
    rows = _read(data / "mmlu_cs/test.jsonl")
    names = sorted({row["subject"] for row in rows})
    labelled = [{"text": row["question"][:400], "label": names.index(row["subject"])} for row in rows]
    order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(0)).tolist()
    return [labelled[i] for i in order[:count]], [labelled[i] for i in order[count : 2 * count]]


TASKS: dict[str, tuple[Callable[[Path, int], tuple[Rows, Rows]], int]] = {
    "reviews": (reviews, 2),
    "sst2": (sst2, 2),
    "subjects": (subjects, 4),
}


def test_jacobians(la: LaplaceLoRA, rows: Rows, tokenizer: Any, classes: int) -> list[Tensor]:
    """Collect the contrast Jacobians of held-out examples, per matrix (N, K-1, out, in)."""
    contrasts = contrast_basis(classes)
    parts: list[dict[tuple[int, int], Tensor]] = []
    with jacobian_pass(la.model, la._covered.sites, la.readout) as runner:
        for batch in batches(rows, tokenizer, 20):
            batch.pop("labels")
            logits = runner.forward(la.readout.rows(batch, None)).logits
            found: dict[tuple[int, int], Tensor] = {}
            runner.rows(
                contrasts.expand(len(logits), -1, -1),
                lambda g, into=found: into.__setitem__((g.index, g.row), g.jacobian()),
            )
            parts.append(found)
    return [
        torch.cat([torch.stack([part[index, row] for row in range(classes - 1)], dim=1) for part in parts])
        for index in range(len(la._covered.sites))
    ]


def mean_variance(posteriors: list[tuple[Posterior, list[int]]], jacobians: list[Tensor], delta: float) -> float:
    """Mean variance of the contrasts under a posterior made of independent parts."""
    total = 0.0
    for posterior, indices in posteriors:
        posterior.assign_groups([0] * len(indices))
        accumulator = posterior.accumulator(torch.tensor([delta], dtype=torch.float64))
        for place, index in enumerate(indices):
            for row in range(jacobians[index].shape[1]):
                accumulator.add(place, row, jacobians[index][:, row])
        total += float(accumulator.covariance()[0].diagonal(dim1=1, dim2=2).mean())
    return total


def trained(task: str, epochs: int, data: Path, count: int) -> tuple[Any, Any, Rows, Rows]:
    """Train one adapter; return it with its tokenizer, its training data and held-out data."""
    make, classes = TASKS[task]
    train, test = make(data, count)
    model, tokenizer = train_adapter(
        encoder_folder(),
        train,
        classes=classes,
        rank=8,
        epochs=epochs,
        learning_rate=2e-3,
        batch_size=16,
        seed=0,
        progress=False,
    )
    return model, tokenizer, train, test


def measure(task: str, epochs: int, data: Path, count: int, deltas: list[float]) -> dict[str, Any]:
    """Train one adapter and measure every convention on it."""
    model, tokenizer, train, test = trained(task, epochs, data, count)
    classes = TASKS[task][1]

    def fitted(**settings: Any) -> LaplaceLoRA:
        return LaplaceLoRA(model, LaplaceConfig(progress=False, **settings)).fit(batches(train, tokenizer, 20))

    exact = fitted(structure="exact")
    jacobians = test_jacobians(exact, test, tokenizer, classes)
    rows = exact.posterior
    assert isinstance(rows, ExactPosterior)
    everything = list(range(len(rows.shapes)))
    candidates: dict[str, list[tuple[Posterior, list[int]]]] = {
        "exact blocks": [(ExactPosterior([rows.shapes[i]], [rows.rows.tensors[i]]), [i]) for i in everything]
    }
    for kfac in ("fitted", "reduce", "expand"):
        candidates[kfac] = [(fitted(kfac=kfac, factor_rank=WHOLE).posterior, everything)]
    expand = candidates["expand"][0][0]
    assert isinstance(expand, KroneckerPosterior)
    # The authors' scale: R is divided by the number of examples, not of tokens (padding left out here).
    tokens = sum(float(batch["attention_mask"].sum()) for batch in batches(train, tokenizer, 20)) / len(train)
    scaled = [
        factor if shape.module.endswith("classifier") else dataclasses.replace(factor, values=factor.values * tokens)
        for factor, shape in zip(expand.right, expand.shapes, strict=True)
    ]
    candidates["official scale"] = [(KroneckerPosterior(expand.shapes, expand.left, scaled), everything)]
    candidates["diagonal"] = [(fitted(structure="diag").posterior, everything)]
    nothing = [torch.zeros_like(phi[:1]) for phi in rows.rows]
    candidates["prior alone"] = [(ExactPosterior(rows.shapes, nothing), everything)]
    result: dict[str, Any] = {
        "task": task,
        "classes": classes,
        "examples": count,
        "epochs": epochs,
        "train_accuracy": exact.train_accuracy,
        "ratios": {},
    }
    for delta in deltas:
        joint = mean_variance([(rows, everything)], jacobians, delta)
        variances = {name: mean_variance(parts, jacobians, delta) for name, parts in candidates.items()}
        result["ratios"][f"{delta:g}"] = {
            name: {"over_blocks": value / variances["exact blocks"], "over_joint": value / joint}
            for name, value in variances.items()
        }
    return result


def main() -> None:
    """Measure all tasks and stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/ and mmlu_cs/ as JSONL")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS), help="(default: all)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[2, 6, 15], help="stages (default: 2 6 15)")
    parser.add_argument("--examples", type=int, default=100, help="training and test examples each (default: 100)")
    parser.add_argument("--deltas", type=float, nargs="+", default=[1.0, 10.0], help="(default: 1 10)")
    options = parser.parse_args()
    results = []
    for task in options.tasks:
        for epochs in options.epochs:
            results.append(measure(task, epochs, options.data_dir, options.examples, options.deltas))
            write_results("kfac_conventions", results)  # what is done stays, should the rest be cut short


def _read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
