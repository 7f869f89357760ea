"""One pass each over training, held-out and test examples of every adapter: all that any tuner needs, in one file.

A file holds logits, labels and covariances by eigenvalue for every weight matrix (a group of its own), so that whatever
chooses precisions and temperatures afterwards never runs the model.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from cases import CASES, SOUND, UNDER_TRAINED, Row, split, test_rows, training_rows
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters import folder_of, is_trained, parser_of, runs_of
from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.adapters import moved_to
from laplace_lora.commands.inputs import OpenAdapter, open_adapter
from laplace_lora.commands.readout_choice import ReadoutWish
from laplace_lora.commands.settings import AdapterSource
from laplace_lora.data.encoding import Batches
from laplace_lora.loading import saved_input_format, saved_readout
from laplace_lora.persistence import STARTING_POINT_NAME
from laplace_lora.prior import squared_norms
from laplace_lora.readouts import split_labels

BATCH_SIZE = 16
#: Training examples whose covariances are kept, for what is told from the training pass.
TRAIN_EXAMPLES = 60


@dataclasses.dataclass
class Opened:
    """An adapter and a way to make batches of rows."""

    adapter: OpenAdapter
    folder: Path

    @classmethod
    def of(cls, folder: Path, scratch: Path) -> "Opened":
        """Open an adapter as ``fit`` does."""
        opened = open_adapter(AdapterSource(str(folder)))
        form, readout = saved_input_format(folder), saved_readout(folder)
        assert form is not None
        assert readout is not None
        name = "options" if readout.name == "option_scores" else "class"
        opened.choose(ReadoutWish(name, saved=readout), scratch / "train.jsonl", form)
        return cls(opened, folder)

    def batches(self, rows: list[Row], scratch: Path, name: str) -> Batches:
        """Write rows to a file, as users have them, and return its batches."""
        path = scratch / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        form = saved_input_format(self.folder)
        assert form is not None
        data = self.adapter.scan(path, form, "required")
        return self.adapter.encoder(self.adapter.complete(form, data)).batches(data, BATCH_SIZE)


def outputs(opened: Opened, batches: Batches) -> tuple[Tensor, Tensor]:
    """Return the adapter's logits and the labels: forward passes only."""
    readout = opened.adapter.readout
    assert readout is not None
    found, truth = [], []
    with torch.no_grad():
        for batch in batches:
            inputs, given = split_labels(batch, torch.device("cpu"))
            rows = readout.rows(inputs, given)
            labels = readout.labels(rows, given)
            assert labels is not None
            found.append(readout.read(opened.adapter.model, rows).logits.double())
            truth.append(labels.long())
    return torch.cat(found), torch.cat(truth)


def choose_checkpoints(run: Path, rows: list[Row]) -> dict[str, int]:
    """Choose a run's three checkpoints by the training NLL alone: name to position."""
    path = run / "checkpoints.json"
    if not path.exists():
        losses = []
        for folder in checkpoints(run):
            opened = Opened.of(folder, run)
            logits, labels = outputs(opened, opened.batches(rows, run, "train"))
            losses.append(float(torch.nn.functional.cross_entropy(logits, labels)))
        path.write_text(json.dumps({"classes": opened.adapter.classes, "nll": losses}), encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8"))
    shares = [loss / math.log(max(2, found["classes"])) for loss in found["nll"]]
    before = range(len(shares) - 1)
    under = min(before, key=lambda i: abs(shares[i] - UNDER_TRAINED))
    sound = min((i for i in before if i != under), key=lambda i: abs(shares[i] - SOUND))
    return {"under-trained": under, "sound": sound, "interpolating": len(shares) - 1}


def checkpoints(run: Path) -> list[Path]:
    """Return a run's checkpoints in order."""
    return sorted((run / "adapter" / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))


def collect(opened: Opened, run: Path, sets: dict[str, list[Row]]) -> tuple[dict[str, Tensor], LaplaceLoRA]:
    """Fit one adapter and collect its spectra."""
    model = opened.adapter.model
    config = LaplaceConfig(prior_groups="matrix", progress=False)
    la = LaplaceLoRA(model, config, opened.adapter.readout)
    la.fit(opened.batches(sets["train"], run, "train"))
    state = la._state
    tensors: dict[str, Tensor] = {}
    for name, rows in sets.items():
        if rows:
            # Not under the name of the run's own training rows, which stay as they are.
            batches = opened.batches(rows[:TRAIN_EXAMPLES] if name == "train" else rows, run, f"asked-{name}")
            mean, spectrum, labels = state.linearised(model).spectrum(batches, state.covered.reader, None)
            tensors |= {f"{name}.mean": mean, f"{name}.table": spectrum.table, f"{name}.labels": labels}
            tensors["nodes"] = spectrum.nodes
    trained = [site.weights().clone() for site in state.covered.sites]
    with moved_to(model, load_file(opened.folder / STARTING_POINT_NAME)):
        start = [site.weights().clone() for site in state.covered.sites]
    index = state.covered.groups.index
    tensors["squared_norms"] = squared_norms(trained, index)
    tensors["squared_distances"] = squared_norms([a - b for a, b in zip(trained, start, strict=True)], index)
    tensors["start_norms"] = squared_norms(start, index)
    return tensors, la


def measure(work: Path, data: Path, task: str, seed: int, part: str) -> None:
    """Collect the statistics of a run's three checkpoints, or of those that are not there."""
    case, run = CASES[task], folder_of(work, task, seed, part)
    if not is_trained(run):
        return
    kept, out = split(training_rows(data, case, seed), case, part)
    whole = folder_of(work, task, seed, "all")
    if part != "all" and not (whole / "checkpoints.json").exists():
        return
    chosen = choose_checkpoints(whole, split(training_rows(data, case, seed), case, "all")[0])
    for name, position in chosen.items():
        folder = run / "statistics" / name
        if (folder / "spectra.safetensors").exists():
            continue
        opened = Opened.of(checkpoints(run)[position], run)
        tests: list[Row] = [] if part.startswith("fold") else test_rows(data, case)
        if part == "most" and case.options:
            # Options take four rows each: here the smaller part serves temperature scaling alone.
            tensors = {}
            for of, rows in {"held": out, "test": tests}.items():
                tensors[f"{of}.mean"], tensors[f"{of}.labels"] = outputs(opened, opened.batches(rows, run, of))
            folder.mkdir(parents=True, exist_ok=True)
        else:
            tensors, la = collect(opened, run, {"train": kept, "held": out, "test": tests})
            la.save_pretrained(folder)
        contiguous: dict[str, Any] = {key: value.contiguous() for key, value in tensors.items()}
        save_file(contiguous, folder / "spectra.part")
        (folder / "spectra.part").rename(folder / "spectra.safetensors")
        print(task, seed, part, name, flush=True)


def main() -> None:
    """Collect all that is wanted and not there."""
    options = parser_of(__doc__).parse_args()
    for run in runs_of(options):
        measure(options.work_dir.resolve(), options.data_dir.resolve(), *run)


if __name__ == "__main__":
    main()
