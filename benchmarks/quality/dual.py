"""The linearised model of an adapter in its dual form: all inner products of Jacobians, for what refits or leaves out.

One pass over the training examples, which keeps their Jacobians, and one over the test examples. A file holds, for each
role of weights (lora_A, lora_B, head) by itself, J J^T between training examples, J_* J^T and J_* J_*^T; and J (theta -
theta_0), where theta_0 is the adapter's start or zero. Jacobians are of the logits' contrasts, or of all options.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from cases import CASES, Row, split, test_rows, training_rows
from safetensors.torch import load_file, save_file
from spectra import Opened, checkpoints, choose_checkpoints
from torch import Tensor

from adapters import folder_of, is_trained, parser_of, runs_of
from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.adapters import moved_to
from laplace_lora.functional import functional_covariances
from laplace_lora.jacobians import jacobian_pass
from laplace_lora.matrices import Groups
from laplace_lora.persistence import STARTING_POINT_NAME
from laplace_lora.posterior import CovarianceAccumulator


class Jacobians(CovarianceAccumulator):
    """Hands a batch's Jacobians on, as (B, M, size) per matrix, and claims a covariance of zero."""

    def __init__(self, receive: Callable[[list[Tensor]], None]) -> None:
        self.receive = receive
        self.found: dict[int, list[Tensor]] = {}

    def add(self, index: int, row: int, jacobian: Tensor) -> None:
        """See :meth:`CovarianceAccumulator.add`."""
        self.found.setdefault(index, []).append(jacobian.flatten(start_dim=1))

    def covariance(self) -> Tensor:
        """Hand the Jacobians on."""
        matrices = [torch.stack(rows, dim=1) for _, rows in sorted(self.found.items())]
        self.receive(matrices)
        size, count = matrices[0].shape[:2]
        return torch.zeros(1, size, count, count, dtype=torch.float64)


def collect(opened: Opened, run: Path, train: list[Row], test: list[Row]) -> dict[str, Tensor]:
    """Make one adapter's kernels."""
    model = opened.adapter.model
    la = LaplaceLoRA(model, LaplaceConfig(structure="diag", progress=False), opened.adapter.readout)
    la.fit(opened.batches(train[:16], run, "kernel"))
    covered = la._state.covered
    sites, reader = covered.sites, covered.reader
    role = Groups.of(la._state.posterior.shapes, "role").index
    trained = [site.weights().clone() for site in sites]
    with moved_to(model, load_file(opened.folder / STARTING_POINT_NAME)):
        start = [site.weights().clone() for site in sites]
    centres = {"zero": trained, "start": [a - b for a, b in zip(trained, start, strict=True)]}

    def passed(rows: list[Row], name: str, receive: Callable[[list[Tensor]], None]) -> dict[str, Tensor]:
        outputs, labels, moves = [], [], {key: [] for key in centres}

        def also(matrices: list[Tensor]) -> None:
            for key, weights in centres.items():
                products = [j.double() @ w.flatten().double() for j, w in zip(matrices, weights, strict=True)]
                moves[key].append(torch.stack(products).sum(dim=0))
            receive(matrices)

        runner = jacobian_pass(model, sites, reader.readout, head_only=False)
        batches = opened.batches(rows, run, name)
        for logits, _, truth in functional_covariances(
            runner, batches, reader.likelihood, lambda: Jacobians(also), None
        ):
            assert truth is not None
            outputs.append(logits.double())
            labels.append(truth)
        found = {f"{name}.mean": torch.cat(outputs), f"{name}.labels": torch.cat(labels)}
        return found | {f"{name}.move.{key}": torch.cat(parts) for key, parts in moves.items()}

    kept: list[list[Tensor]] = []
    tensors = passed(train, "train", kept.append)
    rows = [torch.cat(parts).flatten(end_dim=1) for parts in zip(*kept, strict=True)]
    kept.clear()
    roles = 1 + max(role)

    def products(matrices: list[Tensor], others: list[Tensor]) -> Tensor:
        total = torch.zeros(roles, len(matrices[0]), len(others[0]), dtype=torch.float64)
        for group, left, right in zip(role, matrices, others, strict=True):
            for columns in torch.arange(left.shape[1]).split(1 << 14):
                total[group] += left[:, columns].double() @ right[:, columns].double().T
        return total

    crosses, owns = [], []

    def against(matrices: list[Tensor]) -> None:
        crosses.append(products([matrix.flatten(end_dim=1) for matrix in matrices], rows))
        own = torch.zeros(roles, *matrices[0].shape[:2], matrices[0].shape[1], dtype=torch.float64)
        for group, matrix in zip(role, matrices, strict=True):
            own[group] += matrix.double() @ matrix.double().mT
        owns.append(own)

    tensors |= passed(test, "test", against)
    tensors |= {"kernel": products(rows, rows), "cross": torch.cat(crosses, dim=1), "own": torch.cat(owns, dim=1)}
    classes, count = tensors["test.mean"].shape[1], tensors["own"].shape[-1]
    identity = torch.eye(classes, dtype=torch.float64)
    return tensors | {"contrasts": identity if count == classes else reader.likelihood.contrasts(classes).double()}


def measure(work: Path, data: Path, task: str, seed: int, part: str) -> None:
    """Make the kernels of a run's checkpoints, or of those that are not there; a fold is tested on its own rows."""
    case, run, whole = CASES[task], folder_of(work, task, seed, part), folder_of(work, task, seed, "all")
    if not is_trained(run):
        return
    rows = training_rows(data, case, seed)
    kept, out = split(rows, case, part)
    for name, position in choose_checkpoints(whole, split(rows, case, "all")[0]).items():
        folder = run / "statistics" / name
        if (folder / "dual.safetensors").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        found = collect(Opened.of(checkpoints(run)[position], run), run, kept, out or test_rows(data, case))
        save_file({key: value.contiguous() for key, value in found.items()}, folder / "dual.part")
        (folder / "dual.part").rename(folder / "dual.safetensors")
        print(task, seed, part, name, flush=True)


def main() -> None:
    """Make all that are wanted and not there."""
    options = parser_of(__doc__).parse_args()
    for run in runs_of(options):
        if run[2] != "most":
            measure(options.work_dir.resolve(), options.data_dir.resolve(), *run)


if __name__ == "__main__":
    main()
