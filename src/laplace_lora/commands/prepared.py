"""An evaluation made ready: adapter, posterior and data, and what every evaluation says of them."""

import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from laplace_lora.commands.console import Console
from laplace_lora.commands.inputs import OpenAdapter, open_adapter, require_readable, say_sources
from laplace_lora.commands.output import check_writable
from laplace_lora.commands.records import require_numbers
from laplace_lora.commands.same_task import require_same_classes
from laplace_lora.commands.settings import AdapterSource, local_or_hub, plain
from laplace_lora.commands.watched import Watched
from laplace_lora.data import DataFile, Encoder, Source, provenance
from laplace_lora.data.encoding import Batches
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import DataSet
from laplace_lora.evaluation.side_by_side import OWN_SPLIT_NOTE
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.persistence import InputFormat
from laplace_lora.predictive import Predictive, concatenate


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of ``evaluate``.

    Attributes:
        source: The adapter.
        data: Labelled data that the adapter was not trained on.
        out: Folder for metrics.json, outputs.safetensors (of classes), predictions.jsonl and report.html.
        posterior: Folder or hub id of the posterior; the adapter's own if None.
        validation: More labelled data, to choose the temperature of temperature scaling on.
        ood: Data of other kinds, to be told apart by their uncertainty and, where labelled, predicted.
        batch_size: Rows per forward pass.
        samples: Adapters drawn from the posterior, whose probabilities of tokens are averaged; 8 if None.
        target_risk: Share of wrong answers that is allowed, to choose a confidence above which to answer; or None.
        coverage: Probability with which sets of classes are to hold the right one, to choose what is in them; or None.
    """

    source: AdapterSource
    data: Source
    out: Path
    posterior: str | None = None
    validation: Source | None = None
    ood: tuple[Source, ...] = ()
    batch_size: int = 16
    samples: int | None = None
    target_risk: float | None = None
    coverage: float | None = None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What an evaluation works with.

    Attributes:
        config: Settings.
        console: Takes messages.
        opened: The adapter.
        la: Its posterior.
        form: How inputs are made.
        data: The data.
        encoder: Makes batches of them.
    """

    config: EvaluateConfig
    console: Console
    opened: OpenAdapter
    la: LaplaceLoRA
    form: InputFormat
    data: DataFile
    encoder: Encoder

    @classmethod
    def of(cls, config: EvaluateConfig, console: Console) -> "Prepared":
        """Load everything and check the data.

        Args:
            config: Settings.
            console: Takes messages.

        Returns:
            What the evaluation works with.
        """
        require_readable(config.data, config.validation, *config.ood)
        check_writable(config.out)
        opened, la = open_posterior(config.source, config.posterior, console)
        form = la.input_format
        require_same_classes(config.data, opened.layout, opened.label_names)
        data = opened.scan(config.data, form, "required")
        say_sources(console, config.data, config.validation, *config.ood)
        if la.readout.name == "option_scores":
            opened.classes = max(opened.classes, data.most_choices)
        encoder = opened.encoder(opened.complete(form, data))
        return cls(config, console, opened, la, form, data, encoder)

    @property
    def batches(self) -> Batches:
        """The data in batches."""
        return self.encoder.batches(self.data, self.config.batch_size)

    def predict(self, batches: Any, description: str) -> Predictive:
        """Predict with a progress bar, and hold no covariances of classes.

        Args:
            batches: Of one file.
            description: Label of the bar.

        Returns:
            All examples.
        """
        bar = tqdm(batches, desc=description, unit="batch", disable=not self.console.progress)
        parts = []
        for batch in bar:
            part = self.la.predict(batch).to("cpu")
            require_numbers(part)
            # A covariance is K x K numbers per row, and nothing here reads that of classes.
            kept = part.covariance if self.la.readout.full_covariance else part.covariance[:, :0, :0]
            parts.append(dataclasses.replace(part, covariance=kept))
        return concatenate(parts)

    def evaluated(self) -> tuple[Predictive, dict[str, float], Watched]:
        """Predict the data, and say so if the posterior was fitted to them or tuned on them.

        Returns:
            All examples, what took how long, and how many rows were known before.
        """
        start = time.perf_counter()
        batches = Watched(self.batches, self.la)
        predictive = self.predict(batches, "evaluate")
        seconds = {"predict": time.perf_counter() - start}
        batches.warn(self.console, self.config.data, "every figure flatters")
        if batches.tuned:
            self.console.warn(
                f"{batches.tuned} of {len(self.data)} rows in {self.config.data} were among those that the posterior "
                "was tuned on (fit --validation): every figure flatters a little; give other rows."
            )
        return predictive, seconds, batches

    def document(self, figures: Mapping[str, Any], seconds: Mapping[str, float], **more: Any) -> dict[str, Any]:
        """Return what metrics.json holds.

        Args:
            figures: The metrics.
            seconds: What took how long.
            **more: What else was found.

        Returns:
            JSON values.
        """
        assert self.la.training is not None
        readout = self.la.readout
        return {
            **figures,
            "readout": {"name": readout.name, "settings": readout.settings()},
            "prior_precision": self.la.prior_precision,
            "mean_temperature": self.la.temperature,
            "keeps_answers": self.la.keeps_answers,
            "data": origin(self.data),
            "posterior": {
                "structure": self.la.config.structure,
                "fisher": self.la.config.fisher_for(self.opened.classes, readout.name),
                "training_examples": self.la.training.examples,
                "bytes": self.la.posterior.nbytes,
            },
            **more,
            "seconds": dict(seconds),
            "settings": plain(self.config),
            "versions": self.versions,
        }

    @property
    def data_set(self) -> DataSet:
        """What tables call the data."""
        return DataSet.of(origin(self.data))

    @property
    def heading(self) -> str:
        """What stands above the tables of a terminal: the data, their number, and what that means for comparisons."""
        shown = self.data.described
        return f"{shown}\n{OWN_SPLIT_NOTE}" if self.data_set.own_split else shown

    @property
    def subtitle(self) -> str:
        """What stands above a report's figures."""
        return f"{self.config.source.adapter} on {self.data.described}"

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what was used."""
        names = ("laplace-lora", "torch", "transformers", "peft", "numpy")
        return {name: importlib.metadata.version(name).split("+")[0] for name in names}

    def details(
        self, seconds: Mapping[str, float], more: Iterable[tuple[str, object]] = ()
    ) -> list[tuple[str, object]]:
        """Return what closes a report.

        Args:
            seconds: What took how long.
            more: Names and values that only some evaluations have.

        Returns:
            Names and values.
        """
        assert self.la.training is not None
        precision = self.la.prior_precision
        shown = f"{precision:.4g}" if isinstance(precision, float) else _spread(precision)
        return [
            ("Adapter", self.config.source.adapter),
            ("Data", self.data.described),
            ("Read by", repr(self.la.readout)),
            ("Posterior", f"{self.la.config.structure}, {self.la.posterior.nbytes:,} bytes"),
            ("Training examples", f"{self.la.training.examples:,}"),
            ("Prior precision", shown),
            *([] if self.la.temperature == 1.0 else [("Temperature of the mean logits", f"{self.la.temperature:.4g}")]),
            *([("Answers", "the trained adapter's")] if self.la.keeps_answers else []),
            *more,
            *((f"Seconds: {name}", f"{value:.1f}") for name, value in seconds.items()),
            *self.versions.items(),
        ]


def open_posterior(source: AdapterSource, posterior: str | None, console: Console) -> tuple[OpenAdapter, LaplaceLoRA]:
    """Load an adapter with its posterior.

    Args:
        source: The adapter.
        posterior: Folder or hub id of the posterior; the adapter's own if None.
        console: Takes messages.

    Returns:
        The adapter, read as in the fit, and the posterior.

    Raises:
        LaplaceLoRAError: The command line cannot use it.
    """
    opened = open_adapter(source, progress=console.progress)
    la = LaplaceLoRA.from_pretrained(opened.model, local_or_hub(posterior or source.adapter))
    assert la.training is not None
    if la.readout.name == "class_logits" and la.config.likelihood == "gaussian":
        raise LaplaceLoRAError("a posterior over several real outputs can be used from Python only: la.predict(batch).")
    if la.input_format.template is None:
        console.warn(
            "the posterior does not say how its inputs were made (LaplaceLoRA(..., "
            "input_format=InputFormat(template=...)) "
            "would); rows are written out by their fields, which may not be as in the training."
        )
    opened.readout, opened.label_names, opened.classes = la.readout, la.input_format.label_names, la.training.classes
    return opened, la


def origin(file: DataFile) -> dict[str, Any]:
    """Say where figures are from.

    Args:
        file: The data.

    Returns:
        JSON values: where the rows come from, and how many ``rows`` there are.
    """
    return {**provenance(file.source), "rows": len(file)}


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write JSON for people and programs.

    Args:
        path: Where to.
        document: JSON values; no NaN and no infinity.
    """
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line.

    Args:
        path: Where to.
        records: The objects.
    """
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _spread(precision: Mapping[str, float]) -> str:
    return f"{min(precision.values()):.4g} to {max(precision.values()):.4g}, by group"
