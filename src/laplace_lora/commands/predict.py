"""``laplace-lora predict``: calibrated predictions for a file, line by line."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from tqdm import tqdm

from laplace_lora.commands.console import Console
from laplace_lora.commands.decisions import Followed
from laplace_lora.commands.inputs import OpenAdapter, say_sources, warn_of_cuts
from laplace_lora.commands.prepared import open_posterior
from laplace_lora.commands.records import real_records, records, require_numbers, text_records
from laplace_lora.commands.same_task import require_same_classes
from laplace_lora.commands.settings import AdapterSource
from laplace_lora.commands.streams import STANDARD, check_output, readable, written
from laplace_lora.config import MOST_CLASSES_EXACT_FISHER
from laplace_lora.curvature import backward_passes
from laplace_lora.data import Source, open_rows
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.predictive import Predictive
from laplace_lora.readouts import IGNORED, NextToken, Scalar


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Settings of ``predict``.

    Attributes:
        source: The adapter.
        data: Rows, labelled or not: a file, a task's, or ``-`` for standard input.
        out: JSONL file to write, or ``-`` for standard output.
        posterior: Folder or hub id of the posterior; the adapter's own if None.
        batch_size: Rows per forward pass.
        top_k: Vary only the logits of so many classes, the adapter's likeliest; all if None.
    """

    source: AdapterSource
    data: str | Source
    out: str
    posterior: str | None = None
    batch_size: int = 16
    top_k: int | None = None


def predict(config: PredictConfig, console: Console) -> int:
    """Predict every row of a file.

    Args:
        config: Settings.
        console: Takes messages.

    Returns:
        Number of rows.

    Raises:
        LaplaceLoRAError: Something does not fit; nothing is written then.
    """
    check_output(config.out, config.data, "predictions")
    with readable(config.data) as (path, name):
        first = next(open_rows(path, name), None)  # a wrong path is told before a model is loaded
        opened, la = open_posterior(config.source, config.posterior, console)
        readout, form, layout = la.readout, la.input_format, opened.layout
        if readout.name == "pairwise_reward" and first is not None and "chosen" not in first.fields:
            # Single texts, whose rewards are wanted.
            readout = opened.readout = Scalar()
            form = dataclasses.replace(form, template=None, pair_template=None)
        require_same_classes(path, layout, opened.label_names)
        data = opened.scan(path, form, "ignored", name)
        opened.classes = max(opened.classes, data.most_choices) if readout.name == "option_scores" else opened.classes
        encoder = opened.encoder(opened.complete(form, data), layout)
        if config.top_k is not None and config.top_k > opened.classes:
            raise LaplaceLoRAError(
                f"--top-k {config.top_k} is more than the adapter's {opened.classes} classes; give a number from 2 to "
                f"{opened.classes}."
            )
        say_sources(console, path)
        passes = backward_passes(la.config, readout, config.top_k or opened.classes)
        batches = encoder.batches(data, config.batch_size)
        console.say(
            "plan",
            f"predict: {len(data)} examples: {len(batches)} forward and {len(batches) * passes} backward passes",
            examples=len(data),
            forward_passes=len(batches),
            backward_passes=len(batches) * passes,
        )
        if config.top_k is None and passes > MOST_CLASSES_EXACT_FISHER:
            console.say("hint", f"--top-k 5 would take 4 backward passes per batch instead of {passes}")
        classes = not isinstance(readout, Scalar | NextToken)
        folder = config.posterior or config.source.adapter
        rules = Followed.of(folder, console, config.top_k is not None) if classes else Followed()
        names = opened.shown_names if readout.name == "pairwise_reward" else opened.label_names
        neglected = 0.0
        with written(config.out) as out, out.open("w", encoding="utf-8") as file:
            for batch in tqdm(batches, desc="predict", unit="batch", disable=not console.progress):
                predictive = la.predict(batch, config.top_k, readout)
                require_numbers(predictive)
                neglected += float(predictive.neglected_mass.sum())
                found = _records(predictive, opened, la, batch, config.top_k is not None)
                for record, mark in zip(found, rules.mark(predictive, names), strict=True):
                    file.write(json.dumps({**record, **mark}, ensure_ascii=False) + "\n")
    if config.top_k is not None:
        mean = neglected / len(data)
        console.say(
            "neglected",
            f"the classes beyond the {config.top_k} likeliest hold {mean:.4f} of the trained adapter's probability",
            neglected_mass=mean,
        )
    warn_of_cuts(encoder, console)
    if config.out != STANDARD:
        console.say("saved", f"{len(data)} predictions in {config.out}", out=config.out, examples=len(data))
    return len(data)


def _records(
    predictive: Predictive, opened: OpenAdapter, la: LaplaceLoRA, batch: Mapping[str, Tensor], partial: bool
) -> Iterator[dict[str, Any]]:
    readout = opened.readout
    if isinstance(readout, Scalar):
        return real_records(predictive, la.noise_variance)
    if isinstance(readout, NextToken):
        return text_records(predictive, (batch["labels"] != IGNORED).sum(dim=1))
    return records(predictive, opened, partial)
