"""Every way of calibrating the quality benchmark's adapters, on test examples, from what spectra.py has collected.

No model is run. ``temperature (80 %)`` is the simple rival: an adapter trained on 80 % of the examples, a temperature
chosen on the rest. ``validation (80 %)`` has the same adapter; everything else has that of all examples. Two are bounds
and no ways: a temperature alone, and a precision with it, chosen on the test examples themselves.
"""

import concurrent.futures
import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import CASES, CROSS_FITTED, FOLDS
from common import RESULTS, write_results
from safetensors.torch import load_file
from torch import Tensor

from adapters import folder_of, parser_of
from laplace_lora.evaluation import Logits, Probabilities, metrics, selective
from laplace_lora.evaluation.bootstrap import percentile_interval, resampling_counts
from laplace_lora.matrices import Groups
from laplace_lora.methods import fit_temperature
from laplace_lora.persistence.posterior import read_posterior
from laplace_lora.posterior import Posterior, Spectrum
from laplace_lora.predictive import Predictive, of_options
from laplace_lora.prior import HeldOut, choose_jointly, fixed_point, harmless_multiple, over_fitted

CHECKPOINTS = ("under-trained", "sound", "interpolating")
#: Ways of tuning by the evidence: prior groups, and what the prior is centred on.
EVIDENCE = (("global", "zero"), ("role", "zero"), ("matrix", "zero"), ("global", "start"), ("role", "start"))
RIVAL = "temperature (80 %)"
#: Chosen on the very test examples: bounds that nobody can have.
TOLD = "chosen on test"
SUBSETS, SUBSET_SIZE = 50, 40
RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Collected:
    """An adapter's statistics."""

    tensors: Mapping[str, Tensor]
    matrices: tuple[Any, ...] = ()
    posterior: Posterior | None = None
    examples: int = 0

    @classmethod
    def of(cls, folder: Path) -> "Collected | None":
        """Read them; None where they are not there."""
        if not (folder / "spectra.safetensors").exists():
            return None
        tensors = load_file(folder / "spectra.safetensors")
        if not (folder / "posterior.safetensors").exists():
            return cls(tensors)
        state, posterior, _ = read_posterior(folder)
        return cls(tensors, state.matrices, posterior, state.examples)

    def logits(self, name: str) -> Logits:
        """The adapter's logits on one set."""
        return Logits(self.tensors[f"{name}.mean"].numpy())

    def labels(self, name: str) -> Any:
        """Its labels."""
        return self.tensors[f"{name}.labels"].long().numpy()

    def held_out(self, name: str, groups: str) -> HeldOut:
        """One set at every prior of some groups."""
        index = Groups.of(self.matrices, groups).index  # type: ignore[arg-type]
        table = self.tensors[f"{name}.table"]
        summed = torch.zeros(1 + max(index), *table.shape[1:]).index_add(0, torch.tensor(index), table)
        return HeldOut(
            self.tensors[f"{name}.mean"], Spectrum(self.tensors["nodes"], summed), self.tensors[f"{name}.labels"].long()
        )

    def by_evidence(self, groups: str, centre: str) -> Tensor:
        """Precisions at the maximum of the evidence."""
        assert self.posterior is not None
        index = Groups.of(self.matrices, groups).index  # type: ignore[arg-type]
        self.posterior.assign_groups(index)
        norms = self.tensors["squared_norms" if centre == "zero" else "squared_distances"]
        summed = torch.zeros(1 + max(index), dtype=torch.float64).index_add(0, torch.tensor(index), norms)
        return fixed_point(self.posterior, torch.ones_like(summed), summed).precision

    def harmless(self, precision: Tensor) -> float:
        """By how much ``auto`` raises one precision for all: what the library does, on the training examples here."""
        assert self.posterior is not None
        data = self.held_out("train", "global")
        gamma = float(self.posterior.effective_parameters(precision).sum())
        if over_fitted(gamma, self.examples, data.mean.shape[1], self.posterior.joint):
            return 1.0
        return harmless_multiple(
            lambda multiple: predictive(data, precision * multiple, keeps_answers=True), data.labels
        )


def predictive(data: HeldOut, precision: Tensor, temperature: float = 1.0, keeps_answers: bool = False) -> Predictive:
    """What the library predicts at a prior and a temperature."""
    covariance = data.spectrum.covariance(precision)
    return of_options(data.mean, covariance, temperature=temperature, keeps_answers=keeps_answers)


def predicted(data: HeldOut, precision: Tensor, temperature: float = 1.0, keeps_answers: bool = False) -> Probabilities:
    """Its probabilities."""
    return Probabilities(predictive(data, precision, temperature, keeps_answers).probabilities.numpy())


def methods_of(
    whole: Collected, most: Collected | None, folds: list[Collected]
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Every method's test probabilities, and what it chose."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {"map": (whole.logits("test").softmax(), {})}
    for groups, centre in EVIDENCE:
        precision = whole.by_evidence(groups, centre)
        chosen = {"precision": precision.tolist()}
        found[f"evidence, {groups}, {centre}"] = (predicted(whole.held_out("test", groups), precision), chosen)
    for centre in ("zero", "start"):
        precision = whole.by_evidence("global", centre)
        raised = whole.harmless(precision)
        chosen = {"precision": (raised * precision).tolist(), "raised": raised}
        data = whole.held_out("test", "global")
        found[f"auto, {centre}"] = (predicted(data, raised * precision, keeps_answers=True), chosen)
        if data.mean.shape[1] > 2:
            found[f"auto, {centre}, variances as they are"] = (predicted(data, raised * precision), chosen)
    temperature = fit_temperature(whole.logits("test"), whole.labels("test"))
    found[f"temperature, {TOLD}"] = (whole.logits("test").softmax(temperature), {"temperature": temperature})
    found |= {f"both, {TOLD}": both for both in _jointly("", whole, [whole], ("global",), "test").values()}
    if most is not None:
        temperature = fit_temperature(most.logits("held"), most.labels("held"))
        found[RIVAL] = (most.logits("test").softmax(temperature), {"temperature": temperature})
        if most.posterior is not None:
            found |= _jointly("validation (80 %)", most, [most], ("global", "role"))
    if len(folds) == FOLDS:
        logits = Logits(np.concatenate([fold.logits("held").values for fold in folds]))
        temperature = fit_temperature(logits, np.concatenate([fold.labels("held") for fold in folds]))
        found["temperature, cross-fitted"] = (whole.logits("test").softmax(temperature), {"temperature": temperature})
        found |= _jointly("cross-fit", whole, folds, ("global", "role"))
    return found


def _jointly(
    name: str, tested: Collected, asked: list[Collected], kinds: tuple[str, ...], asked_of: str = "held"
) -> dict[str, tuple[Any, Any]]:
    found = {}
    for groups in kinds:
        held_out = [one.held_out(asked_of, groups) for one in asked]
        start = torch.ones(held_out[0].spectrum.table.shape[0], dtype=torch.float64)  # type: ignore[attr-defined]
        chosen = choose_jointly(held_out, start)
        said = {"precision": chosen.precision.tolist(), "temperature": chosen.temperature}
        probabilities = predicted(tested.held_out("test", groups), chosen.precision, chosen.temperature)
        found[f"{name}, {groups}"] = (probabilities, said)
    return found


def figures(probabilities: Probabilities, labels: Any) -> dict[str, float | None]:
    """All figures of one method."""
    floor = metrics.ece_floor(probabilities)
    return {
        "accuracy": metrics.accuracy(probabilities, labels),
        "nll": metrics.nll(probabilities, labels),
        "ece": metrics.ece(probabilities, labels),
        "ece_floor": floor,
        "brier": metrics.brier(probabilities, labels),
        "auroc": selective.error_auroc(probabilities, labels),
        "aurc": selective.aurc(probabilities, labels),
    }


def paired(values: Any, others: Any) -> dict[str, float | None]:
    """The mean difference over test examples, with its 95 % bootstrap interval."""
    difference = values - others
    counts = resampling_counts(len(difference), RESAMPLES, 0)
    sampled = np.concatenate([block @ difference / len(difference) for block in counts])
    return percentile_interval(float(difference.mean()), sampled).to_dict()


def few_examples(whole: Collected) -> dict[str, float]:
    """Tune on 50 random subsets of 40 test examples; measure each on all the others, beside the trained adapter."""
    data, generator = whole.held_out("test", "global"), torch.Generator().manual_seed(0)
    harms = []
    for _ in range(SUBSETS):
        order = torch.randperm(len(data), generator=generator)
        few, rest = (_rows(data, part) for part in (order[:SUBSET_SIZE], order[SUBSET_SIZE:]))
        chosen = choose_jointly([few], torch.ones(1, dtype=torch.float64))
        tuned = rest.probabilities(chosen.precision, chosen.temperature)
        plain = torch.log_softmax(rest.mean, dim=1)
        rows = torch.arange(len(rest))
        harms.append(float((plain[rows, rest.labels] - tuned[rows, rest.labels].log()).mean()))
    return {"mean": sum(harms) / len(harms), "worst": max(harms)}


def _rows(data: HeldOut, rows: Tensor) -> HeldOut:
    spectrum = data.spectrum
    assert isinstance(spectrum, Spectrum)
    return HeldOut(data.mean[rows], Spectrum(spectrum.nodes, spectrum.table[:, :, rows]), data.labels[rows])


def measure(work: Path, name: str, seed: int, checkpoint: str) -> dict[str, Any] | None:
    """Compare all methods on one adapter; None where its statistics are not there."""

    def part(name_of_part: str) -> Collected | None:
        return Collected.of(folder_of(work, name, seed, name_of_part) / "statistics" / checkpoint)

    whole = part("all")
    if whole is None:
        return None
    folds = [part(f"fold{index}") for index in range(FOLDS)] if name in CROSS_FITTED else []
    methods = methods_of(whole, part("most"), [fold for fold in folds if fold is not None])
    labels = whole.labels("test")
    losses = {key: metrics.log_losses(probabilities, labels) for key, (probabilities, _) in methods.items()}
    hits = {key: metrics.correct(probabilities, labels) for key, (probabilities, _) in methods.items()}
    results: dict[str, Any] = {}
    for key, (probabilities, chosen) in methods.items():
        more: dict[str, Any] = {"nll_over_map": paired(losses[key], losses["map"])}
        more["accuracy_lost"] = paired(hits["map"], hits[key])
        if RIVAL in losses:
            more["nll_over_rival"] = paired(losses[key], losses[RIVAL])
        results[key] = {**figures(probabilities, labels), **more, "chosen": chosen}
    train = torch.nn.functional.cross_entropy(whole.tensors["train.mean"], whole.tensors["train.labels"].long())
    return {
        "case": name,
        "seed": seed,
        "checkpoint": checkpoint,
        "test_examples": len(labels),
        "train_nll": float(train),
        "few_examples": few_examples(whole),
        "methods": results,
    }


def main() -> None:
    """Compare on every adapter whose statistics are there; results of others stay as they are."""
    parser = parser_of(__doc__, needs_data=False)
    parser.add_argument("--processes", type=int, default=2, help="side by side, of one thread each (default: 2)")
    options = parser.parse_args()
    adapters = itertools.product([options.work_dir.resolve()], options.cases, options.seeds, CHECKPOINTS)
    with concurrent.futures.ProcessPoolExecutor(options.processes, initializer=_one_thread) as pool:
        found = [result for result in pool.map(_measured, adapters) if result is not None]
    write_results("quality", merged(found), show=False)


def merged(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put results beside those of other adapters, measured before, and mark these: not this command measured them."""
    path = RESULTS / "quality.json"
    before = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    mine = {_key(result) for result in found}
    kept = [{**result, "measured_before": True} for result in before if _key(result) not in mine]
    cases = list(CASES)
    return sorted(
        [*kept, *found], key=lambda r: (cases.index(r["case"]), r["seed"], CHECKPOINTS.index(r["checkpoint"]))
    )


def _key(result: dict[str, Any]) -> tuple[Any, ...]:
    return result["case"], result["seed"], result["checkpoint"]


def _one_thread() -> None:
    torch.set_num_threads(1)


def _measured(adapter: tuple[Path, str, int, str]) -> dict[str, Any] | None:
    result = measure(*adapter)
    if result is not None:
        print(*adapter[1:], flush=True)
    return result


if __name__ == "__main__":
    main()
