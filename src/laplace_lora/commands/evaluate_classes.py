"""Evaluating predictions of classes: answers, options and preferences included."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from laplace_lora.commands.decisions import Decisions
from laplace_lora.commands.evaluate_outside import Outside, evaluate_outside, require_different, scan_outside
from laplace_lora.commands.inputs import warn_of_cuts
from laplace_lora.commands.methods import labels_of, methods_of, outputs_of
from laplace_lora.commands.output import whole_files
from laplace_lora.commands.prepared import Prepared, origin, write_json, write_lines
from laplace_lora.commands.records import records
from laplace_lora.commands.same_task import require_same_classes, warn_of_shared_rows
from laplace_lora.commands.watched import Watched
from laplace_lora.data import DataFile
from laplace_lora.evaluation import (
    OUTPUTS_FILE,
    Comparison,
    Line,
    OutOfDistribution,
    Predictions,
    Probabilities,
    compare,
    lines_of,
    save_outputs,
    terminal_side_by_side,
    terminal_table,
    verdict,
    write_report,
)
from laplace_lora.evaluation.metrics import IntArray
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.methods import fit_temperature
from laplace_lora.methods.forward import class_logits
from laplace_lora.predictive import Predictive


def evaluate_classes(ready: Prepared) -> "ClassFigures":
    """Measure the trained adapter, a temperature and the posterior on labelled data, and write a report.

    Args:
        ready: Adapter, posterior and data.

    Returns:
        The figures, also on data of other kinds.
    """
    config, opened = ready.config, ready.opened
    require_different(config.ood)
    for source in config.ood:
        warn_of_shared_rows(ready.console, config.data, source, "what is evaluated is told from itself")
    require_same_classes(config.validation, opened.layout, opened.label_names)
    warn_of_shared_rows(ready.console, config.data, config.validation, "the temperature is chosen on what is evaluated")
    validation = None if config.validation is None else opened.scan(config.validation, ready.form, "required")
    others = [scan_outside(opened, ready.form, source, ready.console) for source in config.ood]
    inside, seconds, known = ready.evaluated()
    temperature = None
    if validation is not None:
        start = time.perf_counter()
        held_out = Watched(ready.encoder.batches(validation, config.batch_size), ready.la)
        temperature = _temperature(ready.la, held_out, ready.console.progress)
        held_out.warn(ready.console, config.validation, "the temperature chosen on them is too low")
        seconds["temperature"] = time.perf_counter() - start
    methods, labels = methods_of(inside, temperature), labels_of(ready.data)
    outside = {data.file.name: evaluate_outside(ready, data, inside, methods, temperature) for data in others}
    warn_of_cuts(ready.encoder, ready.console)
    comparison = compare(methods, labels)
    decisions = Decisions.choose(config, methods["laplace"], labels, known.seen, known.tuned)
    found = ClassFigures(
        ready, validation, inside, methods, labels, comparison, outside, temperature, seconds, decisions
    )
    with whole_files(config.out) as folder:
        found.write(folder)
    decisions.save(config, ready.data, ready.console)
    return found


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """What was found.

    Attributes:
        ready: Adapter, posterior and data.
        validation: What the temperature was chosen on, or None.
        predictive: Predictions of the data.
        methods: Their probabilities.
        labels: Their labels.
        comparison: All methods' metrics.
        outside: The same on data of other kinds, by name.
        temperature: Of temperature scaling, or None.
        seconds: What took how long.
        decisions: Rules for acting on the confidence.
    """

    ready: Prepared
    validation: DataFile | None
    predictive: Predictive
    methods: dict[str, Probabilities]
    labels: IntArray
    comparison: Comparison
    outside: dict[str, Outside]
    temperature: float | None
    seconds: dict[str, float]
    decisions: Decisions

    @property
    def ood(self) -> dict[str, OutOfDistribution]:
        """Detection of the other data, by name."""
        return {name: found.detection for name, found in self.outside.items()}

    @property
    def lines(self) -> list[Line]:
        """One line per data set and method."""
        inside = lines_of(self.ready.data_set, self.comparison)
        return inside + [line for found in self.outside.values() for line in found.lines]

    @property
    def text(self) -> str:
        """Verdict and tables for a terminal."""
        parts = [verdict(self.comparison), terminal_table(self.comparison)]
        if self.outside:
            parts.append(terminal_side_by_side(self.lines))
        parts += self.decisions.texts
        return "\n\n".join(parts)

    def write(self, folder: Path) -> None:
        """Write all four files.

        Args:
            folder: Where to.
        """
        more: dict[str, Any] = {"temperature": self.temperature, **self.decisions.to_dict()}
        if self.validation is not None:
            more["validation"] = origin(self.validation)
        if self.outside:
            more["ood"] = {name: found.to_dict() for name, found in self.outside.items()}
        write_json(folder / "metrics.json", self.ready.document(self.comparison.to_dict(), self.seconds, **more))
        save_outputs(
            folder / OUTPUTS_FILE,
            outputs_of(self.predictive, self.methods, self.labels),
            {name: found.outputs for name, found in self.outside.items()},
        )
        write_lines(folder / "predictions.jsonl", self._records())
        self._write_report(folder / "report.html")

    def _records(self) -> Iterator[dict[str, Any]]:
        pairs = self.ready.la.readout.name == "pairwise_reward"
        names = self.ready.opened.shown_names if pairs else self.ready.opened.label_names
        predicted = records(self.predictive, self.ready.opened)
        for example, label, record in zip(self.ready.data, self.labels.tolist(), predicted, strict=True):
            record["prediction"] = record["label"]
            record["label"] = label if names is None else names[label]
            record["text"] = example.shown
            yield record

    def _write_report(self, path: Path) -> None:
        predictions = Predictions(
            labels=self.labels,
            methods=self.methods,
            label_names=self.ready.opened.shown_names,
            texts=[example.shown.replace("\n", " | ") for example in self.ready.data],
            epistemic=self.predictive.mutual_information.numpy(),
        )
        more = []
        if self.validation is not None:
            more.append(("Temperature", f"{self.temperature:.3f}, chosen on {self.validation.described}"))
        more += [("Rule", text) for text in self.decisions.texts]
        more += [("Other data", found.data.file.described) for found in self.outside.values()]
        write_report(
            path,
            self.comparison,
            predictions,
            title="Before and after a Laplace posterior",
            subtitle=self.ready.subtitle,
            out_of_distribution=self.ood,
            data_sets=self.lines,
            details=self.ready.details(self.seconds, more),
        )


def _temperature(la: LaplaceLoRA, batches: Watched, progress: bool) -> float:
    """Choose the temperature on the trained adapter's logits: forward passes only."""
    bar = tqdm(batches, desc="temperature", unit="batch", disable=not progress)
    logits, labels = class_logits(la.model, la.readout, bar)
    assert labels is not None
    return fit_temperature(logits, labels)
