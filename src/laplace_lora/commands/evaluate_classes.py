"""Evaluating predictions of classes: answers, options and preferences included."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from laplace_lora.commands.inputs import warn_of_cuts
from laplace_lora.commands.output import whole_files
from laplace_lora.commands.prepared import Prepared, write_json, write_lines
from laplace_lora.commands.records import records
from laplace_lora.commands.watched import Watched
from laplace_lora.data import RowFormat, open_rows
from laplace_lora.data.scan import Example
from laplace_lora.evaluation import (
    Comparison,
    OutOfDistribution,
    Predictions,
    compare,
    ood_scores,
    write_report,
)
from laplace_lora.evaluation.metrics import softmax
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.methods import fit_temperature
from laplace_lora.persistence import InputFormat
from laplace_lora.predictive import Predictive
from laplace_lora.readouts import split_labels


def evaluate_classes(ready: Prepared) -> tuple[Comparison, OutOfDistribution | None]:
    """Measure the trained adapter, a temperature and the posterior on labelled data, and write a report.

    Args:
        ready: Adapter, posterior and data.

    Returns:
        The figures, and how well other data are told apart.
    """
    config, opened, la, form = ready.config, ready.opened, ready.la, ready.form
    validation = None if config.validation is None else opened.scan(config.validation, form, "required")
    ood = None if config.ood is None else opened.scan(config.ood, _other_format(config.ood, form), "ignored")
    inside, seconds = ready.evaluated()
    temperature = None
    if validation is not None:
        start = time.perf_counter()
        held_out = Watched(ready.encoder.batches(validation, config.batch_size), la)
        temperature = _temperature(la, held_out, ready.console.progress)
        held_out.warn(ready.console, config.validation, "the temperature chosen on them is too low")
        seconds["temperature"] = time.perf_counter() - start
    outside = None if ood is None else ready.predict(ready.encoder.batches(ood, config.batch_size), "ood")
    # Of pairs, the first text is the preferred one.
    examples = [e if e.label is not None else e._replace(label=0) for e in ready.data]
    methods = _methods(inside, temperature)
    comparison = compare(methods, np.array([int(e.label or 0) for e in examples]))
    detection = None
    if outside is not None:
        detection = ood_scores(
            *_as_wide(methods, _methods(outside, temperature)),
            in_mutual_information={"laplace": inside.mutual_information.numpy()},
            out_mutual_information={"laplace": outside.mutual_information.numpy()},
        )
    warn_of_cuts(ready.encoder, ready.console)
    found = _Found(ready, examples, inside, methods, comparison, detection, temperature, seconds)
    with whole_files(config.out) as folder:
        found.write(folder)
    return comparison, detection


@dataclasses.dataclass(frozen=True)
class _Found:
    ready: Prepared
    examples: list[Example]
    predictive: Predictive
    methods: dict[str, Any]
    comparison: Comparison
    ood: OutOfDistribution | None
    temperature: float | None
    seconds: dict[str, float]

    def write(self, folder: Path) -> None:
        """Write all three files."""
        more: dict[str, Any] = {"temperature": self.temperature}
        if self.ood is not None:
            more["ood"] = self.ood.to_dict()
        write_json(folder / "metrics.json", self.ready.document(self.comparison.to_dict(), self.seconds, **more))
        write_lines(folder / "predictions.jsonl", self._records())
        self._write_report(folder / "report.html")

    def _records(self) -> Iterator[dict[str, Any]]:
        pairs = self.ready.la.readout.name == "pairwise_reward"
        names = self.ready.opened.shown_names if pairs else self.ready.opened.label_names
        for example, record in zip(self.examples, records(self.predictive, self.ready.opened), strict=True):
            label = int(example.label or 0)
            record["prediction"] = record["label"]
            record["label"] = label if names is None else names[label]
            record["text"] = example.shown
            yield record

    def _write_report(self, path: Path) -> None:
        predictions = Predictions(
            labels=np.array([int(example.label or 0) for example in self.examples]),
            methods=self.methods,
            label_names=self.ready.opened.shown_names,
            texts=[example.shown.replace("\n", " | ") for example in self.examples],
            epistemic=self.predictive.mutual_information.numpy(),
        )
        config = self.ready.config
        more = []
        if self.temperature is not None:
            more.append(("Temperature", f"{self.temperature:.3f}, chosen on {config.validation}"))
        write_report(
            path,
            self.comparison,
            predictions,
            title="Before and after a Laplace posterior",
            subtitle=f"{config.source.adapter} on {config.data}",
            out_of_distribution=None if self.ood is None else {str(config.ood): self.ood},
            details=self.ready.details(self.seconds, more),
        )


def _other_format(path: Path, form: InputFormat) -> InputFormat:
    """Keep the template where a file of another kind has its fields; else take that of the file's own shape."""
    first = next(open_rows(path), None)
    if form.template is None or first is None:
        return form
    if RowFormat(form.template, form.pair_template).fields() - {"choice"} <= set(first.fields):
        return form
    return dataclasses.replace(form, template=None, pair_template=None)


def _methods(predictive: Predictive, temperature: float | None) -> dict[str, Any]:
    methods = {"map": predictive.map_probabilities.numpy()}
    if temperature is not None:
        methods["temperature"] = softmax(predictive.mean.numpy() / temperature)
    return {**methods, "laplace": predictive.probabilities.numpy()}


def _as_wide(inside: dict[str, Any], outside: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give both the same number of options: those that are absent have probability 0."""
    widest = max(inside["map"].shape[1], outside["map"].shape[1])

    def widened(methods: dict[str, Any]) -> dict[str, Any]:
        return {name: np.pad(p, ((0, 0), (0, widest - p.shape[1]))) for name, p in methods.items()}

    return widened(inside), widened(outside)


def _temperature(la: LaplaceLoRA, batches: Watched, progress: bool) -> float:
    """Choose the temperature on the trained adapter's logits: forward passes only."""
    logits, labels = [], []
    device = next(la.model.parameters()).device
    with torch.no_grad():
        for batch in tqdm(batches, desc="temperature", unit="batch", disable=not progress):
            inputs, given = split_labels(batch, device)
            rows = la.readout.rows(inputs, given)
            label = la.readout.labels(rows, given)
            assert label is not None
            logits.append(la.readout.read(la.model, rows).logits.double().cpu())
            labels.append(label.cpu())
    widest = max(part.shape[1] for part in logits)
    # Absent options take no part at any temperature: as good as -inf, and finite.
    padded = [torch.nn.functional.pad(part, (0, widest - part.shape[1]), value=-1e9).clamp(min=-1e9) for part in logits]
    return fit_temperature(torch.cat(padded).numpy(), torch.cat(labels).numpy())
