"""What directions of all weights together add to posteriors whose matrices are independent, by rank, on real adapters.

For every adapter: the mean functional variance of held-out logits under each structure over that of the exact joint
GGN (1 is right), and the smallest and largest ratio of one example's. Beside `kron_low_rank`, which factors what its
directions leave, the other way to join both: the factors of the whole GGN, projected off the directions,
V Lambda V^T + c (I - V V^T) B (I - V V^T), with c = 1 or so that the trace is the GGN's.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import write_results
from kfac_conventions import TASKS, test_jacobians, trained
from sketch_ranks import variances
from torch import Tensor

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.demo.training import batches
from laplace_lora.posterior import ExactPosterior, KroneckerLowRankPosterior, KroneckerPosterior

Variances = Callable[[float], Tensor]


class Projected:
    """K-FAC of the whole GGN off the directions of a sketch, and the sketch along them."""

    def __init__(self, kron: KroneckerPosterior, sketched: KroneckerLowRankPosterior, jacobians: list[Tensor]) -> None:
        """Decompose the sketch; it and the factors are those of fitted posteriors."""
        self.kron, self.shapes = kron, kron.shapes
        factor = torch.cat([part.double() for part in sketched.factors])
        vectors, singular, _ = torch.linalg.svd(factor, full_matrices=False)
        self.along, self.values = vectors, singular.square()
        self.size, self.rows = jacobians[0].shape[:2]
        self.jacobians = torch.cat([j.double().flatten(0, 1).flatten(1) for j in jacobians], dim=1)
        self.trace = sum(
            float((p.eigenvalues * p.directions).sum()) for i in range(len(self.shapes)) for p in self._at(i)
        )

    def _at(self, index: int) -> Any:
        return self.kron.parts(index)

    def _powers(self, rows: Tensor, shift: float, scale: float, power: float) -> Tensor:
        """Multiply rows (n, P) by (scale B + shift I)^power."""
        found = []
        for index, part in enumerate(rows.split([shape.size for shape in self.shapes], dim=1)):
            shape = self.shapes[index]
            turned = self.kron.rotate(index, part.reshape(-1, shape.out_features, shape.in_features))
            weights = [(scale * p.eigenvalues + shift) ** power for p in self._at(index)]
            back = self.kron.rotate_back(index, [c * w for c, w in zip(turned, weights, strict=True)])
            found.append(back.flatten(1))
        return torch.cat(found, dim=1)

    def matched_scale(self) -> float:
        """Return c with which the trace is the GGN's, as that of the fitted factors is."""
        along = float((self._powers(self.along.T, 0.0, 1.0, 1.0) * self.along.T).sum())
        return max(0.0, self.trace - float(self.values.sum())) / (self.trace - along)

    def variances(self, delta: float, scale: float) -> Tensor:
        """Return every held-out example's mean variance of the contrasts."""
        solved, solved_along = (self._powers(x, delta, scale, -1.0) for x in (self.jacobians, self.along.T))
        inside = (self.jacobians @ self.along).square() / (self.values + delta)
        cross = self.jacobians @ solved_along.T
        taken = torch.linalg.solve(solved_along @ self.along, cross.T).T * cross
        total = inside.sum(1) + (self.jacobians * solved).sum(1) - taken.sum(1)
        return total.view(self.size, self.rows).mean(dim=1)


def measure(task: str, epochs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one adapter and compare all structures on it."""
    model, tokenizer, train, test = trained(task, epochs, options.data_dir, options.examples)
    classes = TASKS[task][1]

    def fitted(**settings: Any) -> LaplaceLoRA:
        return LaplaceLoRA(model, LaplaceConfig(progress=False, **settings)).fit(batches(train, tokenizer, 20))

    exact = fitted(structure="exact")
    jacobians = test_jacobians(exact, test[:100], tokenizer, classes)
    rows, kron = exact.posterior, fitted().posterior
    assert isinstance(rows, ExactPosterior)
    assert isinstance(kron, KroneckerPosterior)

    def of(posterior: Any) -> Variances:
        return lambda delta: variances(posterior, jacobians, delta)

    candidates: dict[tuple[str, int], Variances] = {
        ("kron", 0): of(kron),
        ("diag", 0): of(fitted(structure="diag").posterior),
    }
    for rank in options.ranks:
        for structure in ("low_rank", "kron_low_rank"):
            la = fitted(structure=structure, factor_rank=rank, memory_limit_bytes=2**40)
            candidates[structure, rank] = of(la.posterior)
        assert isinstance(la.posterior, KroneckerLowRankPosterior)
        projected = Projected(kron, la.posterior, jacobians)
        scales = {"projected, c = 1": 1.0, "projected, trace matched": projected.matched_scale()}
        for name, scale in scales.items():
            candidates[name, rank] = lambda delta, p=projected, c=scale: p.variances(delta, c)
    found = []
    for delta in options.deltas:
        joint = variances(rows, jacobians, delta)
        for (name, rank), compute in candidates.items():
            mine = compute(delta)
            ratio = {"mean": float(mine.mean() / joint.mean())}
            ratio |= {"lowest": float((mine / joint).min()), "highest": float((mine / joint).max())}
            found.append({"delta": delta, "structure": name, "rank": rank, **ratio})
    about = {"task": task, "classes": classes, "examples": len(train), "epochs": epochs}
    return about | {"ggn_rows": len(rows.rows[0]), "train_accuracy": exact.train_accuracy, "rows": found}


def main() -> None:
    """Measure all tasks and stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with sst2/ and mmlu_cs/ as JSONL")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "subjects"], choices=list(TASKS), help="(default: both)")
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 12], help="stages (default: 3 12)")
    parser.add_argument("--examples", type=int, default=200, help="training examples (default: 200)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[10, 50, 64, 100, 200], help="(default: 10 ... 200)")
    parser.add_argument("--deltas", type=float, nargs="+", default=[1.0, 10.0], help="(default: 1 10)")
    options = parser.parse_args()
    results = []
    for task in options.tasks:
        for epochs in options.epochs:
            results.append(measure(task, epochs, options))
            write_results("joint_directions", results, show=False)  # what is done stays, should the rest be cut short
            print(task, epochs, "done", flush=True)


if __name__ == "__main__":
    main()
