"""``laplace-lora evaluate``: the trained adapter, a temperature and the posterior on labelled data."""

import dataclasses
import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from laplace_lora.commands.console import Console
from laplace_lora.commands.inputs import OpenAdapter, open_adapter, require_readable, warn_of_cuts
from laplace_lora.commands.output import check_writable, whole_files
from laplace_lora.commands.records import records, require_probabilities
from laplace_lora.commands.settings import AdapterSource, local_or_hub, plain
from laplace_lora.commands.watched import Watched
from laplace_lora.data import RowFormat, open_rows
from laplace_lora.data.scan import Example
from laplace_lora.evaluation import (
    Comparison,
    OutOfDistribution,
    Predictions,
    compare,
    ood_scores,
    terminal_table,
    verdict,
    write_report,
)
from laplace_lora.evaluation.metrics import softmax
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.methods import fit_temperature
from laplace_lora.persistence import InputFormat
from laplace_lora.predictive import Predictive
from laplace_lora.readouts import split_labels


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of ``evaluate``.

    Attributes:
        source: The adapter.
        data: Labelled data that the adapter was not trained on.
        out: Folder for metrics.json, predictions.jsonl and report.html.
        posterior: Folder or hub id of the posterior; the adapter's own if None.
        validation: More labelled data, to choose the temperature of temperature scaling on.
        ood: Data of another kind (labels ignored), to be told apart by their uncertainty.
        batch_size: Rows per forward pass.
    """

    source: AdapterSource
    data: Path
    out: Path
    posterior: str | None = None
    validation: Path | None = None
    ood: Path | None = None
    batch_size: int = 16


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        comparison: All methods' metrics.
        ood: Detection of other data, or None.
        text: Verdict and table for a terminal.
    """

    comparison: Comparison
    ood: OutOfDistribution | None
    text: str


def evaluate(config: EvaluateConfig, console: Console) -> Evaluation:
    """Measure an adapter before and after its posterior, and write a report.

    Args:
        config: Settings.
        console: Takes messages.

    Returns:
        The figures.
    """
    require_readable(config.data, config.validation, config.ood)
    check_writable(config.out)
    opened = open_adapter(config.source, progress=console.progress)
    la = LaplaceLoRA.from_pretrained(opened.model, local_or_hub(config.posterior or config.source.adapter))
    form = la.input_format
    opened.label_names = form.label_names
    data = opened.scan(config.data, form, "required")
    validation = None if config.validation is None else opened.scan(config.validation, form, "required")
    ood = None if config.ood is None else opened.scan(config.ood, _other_format(config.ood, form), "ignored")
    encoder = opened.encoder(opened.complete(form, data))

    seconds: dict[str, float] = {}
    start = time.perf_counter()
    batches = Watched(encoder.batches(data, config.batch_size), la)
    inside = _predict(la, batches, "evaluate", console)
    seconds["predict"] = time.perf_counter() - start
    batches.warn(console, config.data, "every figure flatters")
    temperature = None
    if validation is not None:
        start = time.perf_counter()
        held_out = Watched(encoder.batches(validation, config.batch_size), la)
        temperature = _temperature(la, held_out, console)
        held_out.warn(console, config.validation, "the temperature chosen on them is too low")
        seconds["temperature"] = time.perf_counter() - start
    outside = None if ood is None else _predict(la, encoder.batches(ood, config.batch_size), "ood", console)
    examples = list(data)
    methods = _methods(inside, temperature)
    comparison = compare(methods, np.array([example.label for example in examples]))
    detection = None
    if outside is not None:
        detection = ood_scores(
            methods,
            _methods(outside, temperature),
            in_mutual_information={"laplace": inside.mutual_information.numpy()},
            out_mutual_information={"laplace": outside.mutual_information.numpy()},
        )
    warn_of_cuts(encoder, console)
    found = _Found(config, opened, la, examples, inside, methods, comparison, detection, temperature, seconds)
    with whole_files(config.out) as folder:
        found.write(folder)
    console.say("saved", f"report in {config.out / 'report.html'}", out=str(config.out))
    return Evaluation(comparison, detection, f"{verdict(comparison)}\n\n{terminal_table(comparison)}")


@dataclasses.dataclass(frozen=True)
class _Found:
    config: EvaluateConfig
    opened: OpenAdapter
    la: LaplaceLoRA
    examples: list[Example]
    predictive: Predictive
    methods: dict[str, Any]
    comparison: Comparison
    ood: OutOfDistribution | None
    temperature: float | None
    seconds: dict[str, float]

    def write(self, folder: Path) -> None:
        """Write all three files."""
        versions = {
            name: importlib.metadata.version(name).split("+")[0]
            for name in ("laplace-lora", "torch", "transformers", "peft", "numpy")
        }
        assert self.la.training is not None
        document: dict[str, Any] = {
            **self.comparison.to_dict(),
            "prior_precision": self.la.prior_precision,
            "posterior": {
                "structure": self.la.config.structure,
                "fisher": self.la.config.fisher_for(self.opened.classes),
                "training_examples": self.la.training.examples,
                "bytes": self.la.posterior.nbytes,
            },
            "temperature": self.temperature,
            "seconds": self.seconds,
            "settings": plain(self.config),
            "versions": versions,
        }
        if self.ood is not None:
            document["ood"] = self.ood.to_dict()
        text = json.dumps(document, indent=2, allow_nan=False)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
        names = self.la.input_format.label_names
        with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
            for example, record in zip(self.examples, records(self.predictive, names), strict=True):
                assert example.label is not None
                record["prediction"] = record["label"]
                record["label"] = example.label if names is None else names[example.label]
                record["text"] = example.text if example.pair is None else f"{example.text}\n{example.pair}"
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._write_report(folder / "report.html", versions)

    def _write_report(self, path: Path, versions: dict[str, str]) -> None:
        predictions = Predictions(
            labels=np.array([example.label for example in self.examples]),
            methods=self.methods,
            label_names=self.opened.labels.shown_names(),
            texts=[e.text if e.pair is None else f"{e.text} | {e.pair}" for e in self.examples],
            epistemic=self.predictive.mutual_information.numpy(),
        )
        config = self.config
        assert self.la.training is not None
        details: list[tuple[str, object]] = [
            ("Adapter", config.source.adapter),
            ("Data", f"{config.data}, {len(self.examples)} examples"),
            ("Posterior", f"{self.la.config.structure}, {self.la.posterior.nbytes:,} bytes"),
            ("Training examples", f"{self.la.training.examples:,}"),
            ("Prior precision", _shown(self.la.prior_precision)),
        ]
        if self.temperature is not None:
            details.append(("Temperature", f"{self.temperature:.3f}, chosen on {config.validation}"))
        details += [(f"Seconds: {name}", f"{value:.1f}") for name, value in self.seconds.items()]
        details += list(versions.items())
        write_report(
            path,
            self.comparison,
            predictions,
            title="Before and after a Laplace posterior",
            subtitle=f"{config.source.adapter} on {config.data}",
            out_of_distribution=None if self.ood is None else {str(config.ood): self.ood},
            details=details,
        )


def _other_format(path: Path, form: InputFormat) -> InputFormat:
    """Keep the template where a file of another kind has its fields; else take that of the file's own shape."""
    first = next(open_rows(path), None)
    if form.template is None or first is None:
        return form
    if RowFormat(form.template, form.pair_template).fields() <= set(first.fields):
        return form
    return dataclasses.replace(form, template=None, pair_template=None)


def _shown(precision: float | dict[str, float]) -> str:
    if isinstance(precision, float):
        return f"{precision:.4g}"
    return f"{min(precision.values()):.4g} to {max(precision.values()):.4g}, by group"


def _predict(la: LaplaceLoRA, batches: Any, description: str, console: Console) -> Predictive:
    bar = tqdm(batches, desc=description, unit="batch", disable=not console.progress)
    parts = []
    for batch in bar:
        part = la.predict(batch).to("cpu")
        require_probabilities(part)
        # A covariance is K x K numbers per row, and nothing here reads it.
        parts.append(dataclasses.replace(part, covariance=part.covariance[:, :0, :0]))
    return Predictive.concatenate(parts)


def _methods(predictive: Predictive, temperature: float | None) -> dict[str, Any]:
    methods = {"map": predictive.map_probabilities.numpy()}
    if temperature is not None:
        methods["temperature"] = softmax(predictive.mean.numpy() / temperature)
    return {**methods, "laplace": predictive.probabilities.numpy()}


def _temperature(la: LaplaceLoRA, batches: Watched, console: Console) -> float:
    """Choose the temperature on the trained adapter's logits: forward passes only."""
    logits, labels = [], []
    device = next(la.model.parameters()).device
    with torch.no_grad():
        for batch in tqdm(batches, desc="temperature", unit="batch", disable=not console.progress):
            inputs, label = split_labels(batch, device)
            assert label is not None
            logits.append(la.readout.logits(la.model, inputs).double().cpu())
            labels.append(label.cpu())
    return fit_temperature(torch.cat(logits).numpy(), torch.cat(labels).numpy())
