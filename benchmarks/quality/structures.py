"""Posterior structures beside the exact GGN, and posteriors over some layers, on the quality benchmark's adapters.

Jacobians of the test examples, and of some training examples, are made once per adapter; every structure is fitted by
the library and asked about them. Distances are those of the functional covariance to the exact GGN's at the same prior
precision. Of the test examples the first part serves as held-out rows (``validation``), and all figures are of the
rest. Results lie beside the adapters, structure by structure, so that a run can be interrupted or extended.
"""

import argparse
import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Row, split, test_rows, training_rows
from common import write_results
from compare import CHECKPOINTS, figures, paired
from dual import Jacobians
from safetensors.torch import load_file
from spectra import BATCH_SIZE, TRAIN_EXAMPLES, Opened, checkpoints, choose_checkpoints
from torch import Tensor

from adapters import folder_of, is_trained, parser_of, runs_of, write_json
from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.adapters import moved_to
from laplace_lora.evaluation import Logits, Probabilities, metrics
from laplace_lora.functional import functional_covariances
from laplace_lora.jacobians import jacobian_pass
from laplace_lora.persistence import STARTING_POINT_NAME
from laplace_lora.posterior import Posterior, Spectrum
from laplace_lora.predictive import Predictive, of_options
from laplace_lora.prior import SCALES, AtScales, HeldOut, choose_jointly, fixed_point, harmless_multiple, over_fitted

#: Structures, by the name of their row.
STRUCTURES: dict[str, dict[str, Any]] = {
    "exact": {"structure": "exact"},
    "low_rank, 50": {"structure": "low_rank", "factor_rank": 50},
    "low_rank, 200": {"structure": "low_rank", "factor_rank": 200},
    "low_rank, 500": {"structure": "low_rank", "factor_rank": 500},
    "kron_low_rank": {"structure": "kron_low_rank"},
    "ekfac": {"structure": "ekfac"},
    "kron": {"structure": "kron"},
    "kron, whole factors": {"structure": "kron", "factor_rank": 10_000},
    "kron, reduce": {"structure": "kron", "kfac": "reduce"},
    "kron, expand": {"structure": "kron", "kfac": "expand"},
    "kron, official": {"structure": "kron", "kfac": "official"},
    "kron_svd, expand": {"structure": "kron_svd", "kfac": "expand"},
    "diag": {"structure": "diag"},
    "isotropic": {"structure": "isotropic"},
    "last_layer": {"structure": "last_layer"},
}
#: Refused where options have rows of their own: their inputs are compared, not averaged.
NOT_OF_OPTIONS = ("kron, reduce",)
#: Of MiniLM's six layers.
SELECTIONS: dict[str, dict[str, Any]] = {
    "queries": {"target_modules": ("query",)},
    "values": {"target_modules": ("value",)},
    "head": {"structure": "last_layer"},
    "first half": {"target_modules": ("query", "value"), "layers_to_transform": (0, 1, 2)},
    "last half": {"target_modules": ("query", "value"), "layers_to_transform": (3, 4, 5)},
    "top layer and head": {"layers_to_transform": (5,)},
    "last half and head": {"layers_to_transform": (3, 4, 5)},
    "all": {},
}
#: Precisions at which covariances are compared with the exact ones.
DELTAS = (1.0, 10.0)
#: Of the test examples, those that choose precision and temperature.
HELD_OUT = 100
_BLOCK = 50
_ONE = torch.ones(1, dtype=torch.float64)


@dataclasses.dataclass
class Asked:
    """Examples with the Jacobians of their logits' contrasts, or of their options.

    Attributes:
        mean: (N, K) logits.
        labels: (N,).
        jacobians: By the name of the weight matrix (N, M, out, in).
        contrasts: (K, M).
    """

    mean: Tensor
    labels: Tensor
    jacobians: dict[str, Tensor]
    contrasts: Tensor

    def part(self, rows: slice) -> "Asked":
        """Return some of the examples."""
        found = {name: value[rows] for name, value in self.jacobians.items()}
        return Asked(self.mean[rows], self.labels[rows], found, self.contrasts)

    def covariances(self, posterior: Posterior, precision: Tensor, scales: Tensor | None = None) -> Tensor:
        """Return (S, N, K, K) of the logits."""
        blocks = []
        for rows in _blocks(len(self.mean)):
            accumulator = posterior.accumulator(precision, scales)
            for index, shape in enumerate(posterior.shapes):
                jacobian = self.jacobians[shape.name][rows]
                for row in range(jacobian.shape[1]):
                    accumulator.add(index, row, jacobian[:, row])
            blocks.append(accumulator.covariance())
        return self.contrasts @ torch.cat(blocks, dim=1) @ self.contrasts.T

    def held_out(self, posterior: Posterior, precision: Tensor) -> tuple[HeldOut, Tensor]:
        """Return the examples at every prior, and what its precisions are multiples of."""
        if not posterior.has_spectrum:
            return HeldOut(self.mean, AtScales(self.covariances(posterior, precision, SCALES)), self.labels), precision
        grid = posterior.grid()
        tables = []
        for rows in _blocks(len(self.mean)):
            found = {index: self.jacobians[shape.name][rows] for index, shape in enumerate(posterior.shapes)}
            tables.append(posterior.gather(found, grid))
        table = self.contrasts @ torch.cat(tables, dim=2) @ self.contrasts.T
        return HeldOut(self.mean, Spectrum(grid.nodes, table), self.labels), _ONE


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, start + _BLOCK)


def alike(rows: list[Row]) -> list[Row]:
    """Leave out the few examples that have more or fewer options than most."""
    counts = [len(row.get("choices", ())) for row in rows]
    return [row for row, count in zip(rows, counts, strict=True) if count == statistics.mode(counts)]


def ask(opened: Opened, la: LaplaceLoRA, rows: list[Row], run: Path, name: str) -> Asked:
    """Make the Jacobians of some examples: one pass."""
    model, covered = opened.adapter.model, la._covered
    kept: list[list[Tensor]] = []
    outputs, labels = [], []
    runner = jacobian_pass(model, covered.sites, covered.reader.readout, head_only=False)
    batches = opened.batches(rows, run, name)
    found = functional_covariances(runner, batches, covered.reader.likelihood, lambda: Jacobians(kept.append), None)
    for logits, _, truth in found:
        assert truth is not None
        outputs.append(logits.double())
        labels.append(truth)
    mean = torch.cat(outputs)
    stacked = [torch.cat(parts) for parts in zip(*kept, strict=True)]
    jacobians = {
        shape.name: values.unflatten(2, (shape.out_features, shape.in_features))
        for shape, values in zip(covered.shapes, stacked, strict=True)
    }
    classes, count = mean.shape[1], stacked[0].shape[1]
    identity = torch.eye(classes, dtype=torch.float64)
    contrasts = identity if count == classes else covered.reader.likelihood.contrasts(classes).double()
    return Asked(mean, torch.cat(labels).long(), jacobians, contrasts)


@dataclasses.dataclass
class Adapter:
    """One adapter, and what its posteriors are asked."""

    opened: Opened
    estimator: LaplaceLoRA
    run: Path
    train: list[Row]
    held: Asked
    test: Asked
    check: Asked
    moved: dict[str, float]
    exact_covariances: dict[float, Tensor] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, run: Path, train: list[Row], test: list[Row]) -> "Adapter":
        """Open it and make all Jacobians."""
        opened = Opened.of(folder, run)
        model = opened.adapter.model
        la = LaplaceLoRA(model, LaplaceConfig(structure="diag", progress=False), opened.adapter.readout)
        sites = la.fit(opened.batches(train[:BATCH_SIZE], run, "structures"))._covered.sites
        trained = [site.weights().clone() for site in sites]
        with moved_to(model, load_file(opened.folder / STARTING_POINT_NAME)):
            pairs = zip(sites, trained, strict=True)
            moved = {site.name: float((weights - site.weights()).square().sum()) for site, weights in pairs}
        everything = ask(opened, la, alike(test), run, "asked")
        held, rest = everything.part(slice(HELD_OUT)), everything.part(slice(HELD_OUT, None))
        check = ask(opened, la, alike(train[:TRAIN_EXAMPLES]), run, "asked")
        return cls(opened, la, run, train, held, rest, check, moved)

    def ask(self, rows: list[Row]) -> Asked:
        """Make other examples' Jacobians."""
        return ask(self.opened, self.estimator, rows, self.run, "asked")

    def fit(self, settings: dict[str, Any]) -> tuple[Posterior, float]:
        """Fit a posterior; return it, and the seconds it took."""
        la = LaplaceLoRA(
            self.opened.adapter.model, LaplaceConfig(progress=False, **settings), self.opened.adapter.readout
        )
        batches = self.opened.batches(self.train, self.run, "structures")
        start = time.perf_counter()
        posterior = la.fit(batches).posterior
        return posterior, time.perf_counter() - start

    def by_evidence(self, posterior: Posterior) -> tuple[Tensor, float, float]:
        """Return the evidence's precision, what ``auto`` raises it by, and the effective number of parameters."""
        squared = torch.tensor([sum(self.moved[shape.name] for shape in posterior.shapes)], dtype=torch.float64)
        evidence = fixed_point(posterior, _ONE, squared).precision
        gamma = float(posterior.effective_parameters(evidence).sum())
        if over_fitted(gamma, len(self.train), self.check.mean.shape[1], posterior.joint):
            return evidence, 1.0, gamma

        def at(multiple: float) -> Predictive:
            covariance = self.check.covariances(posterior, evidence * multiple)[0]
            return of_options(self.check.mean, covariance, keeps_answers=True)

        return evidence, harmless_multiple(at, self.check.labels), gamma

    def measure(self, settings: dict[str, Any], exact: Posterior) -> dict[str, Any]:
        """Fit one posterior, and measure it."""
        posterior, seconds = self.fit(settings)
        evidence, raised, gamma = self.by_evidence(posterior)
        held, base = self.held.held_out(posterior, evidence)
        chosen = choose_jointly([held], _ONE)
        tuners = {
            "evidence": (evidence, 1.0, False),
            "auto": (evidence * raised, 1.0, True),
            "validation": (base * chosen.precision, chosen.temperature, False),
        }
        deltas = {f"{delta:g}": torch.tensor([delta], dtype=torch.float64) for delta in DELTAS} | {
            "auto": evidence * raised
        }
        return {
            "bytes": posterior.nbytes,
            "weights": sum(shape.size for shape in posterior.shapes),
            "fit_seconds": seconds,
            "effective_parameters": gamma,
            "distance": {name: self.distance(posterior, exact, delta) for name, delta in deltas.items()},
            "tuners": {name: self.tuned(posterior, *choice) for name, choice in tuners.items()},
        }

    def distance(self, posterior: Posterior, exact: Posterior, precision: Tensor) -> dict[str, float]:
        """Hold functional covariances against the exact ones."""
        key = float(precision)
        if key not in self.exact_covariances:
            self.exact_covariances[key] = self.test.covariances(exact, precision)[0]
        mine, its = self.test.covariances(posterior, precision)[0], self.exact_covariances[key]
        centring = torch.eye(mine.shape[-1], dtype=torch.float64) - 1.0 / mine.shape[-1]
        mine, its = centring @ mine @ centring, centring @ its @ centring
        traces = [each.diagonal(dim1=1, dim2=2).sum(dim=1) for each in (mine, its)]
        ratios = traces[0] / traces[1]
        apart = torch.linalg.matrix_norm(mine - its) / torch.linalg.matrix_norm(its)
        return {
            "precision": float(precision),
            "variance": float(traces[0].mean() / traces[1].mean()),
            "lowest": float(ratios.min()),
            "highest": float(ratios.max()),
            "frobenius": float(apart.mean()),
        }

    def tuned(self, posterior: Posterior, precision: Tensor, temperature: float, keeps_answers: bool) -> dict[str, Any]:
        """Measure probabilities at a prior and a temperature."""
        covariance = self.test.covariances(posterior, precision)[0]
        predictive = of_options(self.test.mean, covariance, temperature=temperature, keeps_answers=keeps_answers)
        probabilities, labels = Probabilities(predictive.probabilities.numpy()), self.test.labels.numpy()
        plain = Logits(self.test.mean.numpy()).softmax()
        losses = [metrics.log_losses(each, labels) for each in (probabilities, plain)]
        return {
            "precision": float(precision),
            "temperature": temperature,
            "nll_over_map": paired(*losses),
            **figures(probabilities, labels),
        }


def structures_of(task: str) -> dict[str, dict[str, Any]]:
    """Return the structures that a case can have."""
    without = NOT_OF_OPTIONS if CASES[task].options else ()
    return {key: settings for key, settings in STRUCTURES.items() if key not in without}


def measure(work: Path, options: argparse.Namespace, task: str, seed: int) -> None:
    """Measure all that is wanted and not there on a run's checkpoints."""
    data, wanted = options.data_dir.resolve(), options.structures
    case, run = CASES[task], folder_of(work, task, seed, "all")
    if not is_trained(run):
        return
    train, _ = split(training_rows(data, case, seed), case, "all")
    for name, position in choose_checkpoints(run, train).items():
        if name not in options.checkpoints:
            continue
        path = run / "statistics" / name / "structures.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"structures": {}, "selections": {}}
        known = structures_of(task)
        missing = [("structures", key, known[key]) for key in wanted if key in known and key not in found["structures"]]
        if not options.no_selections:
            missing += [("selections", *item) for item in SELECTIONS.items() if item[0] not in found["selections"]]
        if not missing:
            continue
        adapter = Adapter.of(checkpoints(run)[position], run, train, test_rows(data, case))
        exact, _ = adapter.fit(STRUCTURES["exact"])
        labels = adapter.test.labels.numpy()
        found["map"] = figures(Logits(adapter.test.mean.numpy()).softmax(), labels)
        for kind, key, settings in missing:
            found[kind][key] = adapter.measure(settings, exact)
            write_json(path, found)
            print(task, seed, name, kind, key, flush=True)
        del adapter, exact
        gc.collect()


def main() -> None:
    """Measure, then write what is there of all adapters."""
    parser = parser_of(__doc__)
    parser.add_argument("--structures", nargs="+", choices=STRUCTURES, default=list(STRUCTURES), help="(default: all)")
    parser.add_argument("--no-selections", action="store_true", help="leave out posteriors over some layers")
    parser.add_argument(
        "--report",
        action="store_true",
        help="measure nothing; write benchmarks/results/structures.json from what is there",
    )
    parser.add_argument(
        "--checkpoints", nargs="+", choices=CHECKPOINTS, default=list(CHECKPOINTS), help="(default: all)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = options.work_dir.resolve()
    runs = [run[:2] for run in runs_of(options) if run[2] == "all"]
    if options.report:
        write_results("structures", list(results(work, runs)), show=False)
        return
    for task, seed in runs:
        measure(work, options, task, seed)


def results(work: Path, runs: list[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Read what has been measured of some runs; only whole tables, so that means are over the same adapters."""
    for task, seed in runs:
        for checkpoint in CHECKPOINTS:
            path = folder_of(work, task, seed, "all") / "statistics" / checkpoint / "structures.json"
            if path.exists():
                found = json.loads(path.read_text(encoding="utf-8"))
                whole = {"structures": structures_of(task), "selections": SELECTIONS}
                found |= {
                    kind: {n: found[kind][n] for n in t if set(found[kind]) == set(t)} for kind, t in whole.items()
                }
                if found["structures"]:
                    yield {"case": task, "seed": seed, "checkpoint": checkpoint, **found}


if __name__ == "__main__":
    main()
