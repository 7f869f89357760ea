"""``laplace-lora predict``: calibrated predictions for a file, line by line."""

import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from laplace_lora.commands.console import Console
from laplace_lora.commands.inputs import open_adapter, warn_of_cuts
from laplace_lora.commands.output import check_writable, whole_file
from laplace_lora.commands.records import records, require_probabilities
from laplace_lora.commands.settings import AdapterSource, local_or_hub
from laplace_lora.config import MOST_CLASSES_EXACT_FISHER
from laplace_lora.data import open_rows
from laplace_lora.errors import LaplaceLoRAError, OutputError
from laplace_lora.laplace import LaplaceLoRA

STANDARD = "-"


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Settings of ``predict``.

    Attributes:
        source: The adapter.
        data: File of rows, labelled or not, or ``-`` for standard input.
        out: JSONL file to write, or ``-`` for standard output.
        posterior: Folder or hub id of the posterior; the adapter's own if None.
        batch_size: Rows per forward pass.
        top_k: Vary only the logits of so many classes, the adapter's likeliest; all if None.
    """

    source: AdapterSource
    data: str
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
    if config.out != STANDARD:
        _check_output(config)
    with _readable(config.data) as (path, name):
        next(open_rows(path, name), None)  # a wrong path is told before a model is loaded
        opened = open_adapter(config.source, progress=console.progress)
        la = LaplaceLoRA.from_pretrained(opened.model, local_or_hub(config.posterior or config.source.adapter))
        form = la.input_format
        data = opened.scan(path, form, "ignored", name)
        encoder = opened.encoder(opened.complete(form, data))
        if config.top_k is not None and config.top_k > opened.classes:
            raise LaplaceLoRAError(
                f"--top-k {config.top_k} is more than the adapter's {opened.classes} classes; give a number from 2 to "
                f"{opened.classes}."
            )
        passes = (config.top_k or opened.classes) - 1
        batches = encoder.batches(data, config.batch_size)
        console.say(
            "plan",
            f"predict: {len(data)} examples: {len(batches)} forward and {len(batches) * passes} backward passes",
            examples=len(data),
            forward_passes=len(batches),
            backward_passes=len(batches) * passes,
        )
        if config.top_k is None and opened.classes > MOST_CLASSES_EXACT_FISHER:
            console.say("hint", f"--top-k 5 would take 4 backward passes per batch instead of {passes}")
        neglected = 0.0
        with _written(config.out) as out, out.open("w", encoding="utf-8") as file:
            for batch in tqdm(batches, desc="predict", unit="batch", disable=not console.progress):
                predictive = la.predict(batch, config.top_k)
                require_probabilities(predictive)
                neglected += float(predictive.neglected_mass.sum())
                for record in records(predictive, form.label_names, config.top_k is not None):
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
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


def _check_output(config: PredictConfig) -> None:
    path = Path(config.out)
    check_writable(path.parent)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it, such as {path / 'predictions.jsonl'}.")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no ordinary file; name another, or write to standard output with --out -.")
    if path.exists() and config.data != STANDARD and path.samefile(config.data):
        raise OutputError(f"{path} is the data that is read; write the predictions to another file.")


@contextlib.contextmanager
def _readable(data: str) -> Iterator[tuple[Path, str]]:
    """Yield a file that can be read twice, and what messages call it."""
    if data != STANDARD:
        yield Path(data), data
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard-input"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path, "standard input"


@contextlib.contextmanager
def _written(out: str) -> Iterator[Path]:
    """Yield a file that appears whole at the end, or goes to standard output as a whole."""
    if out != STANDARD:
        with whole_file(Path(out)) as path:
            yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard-output"
        yield path
        sys.stdout.flush()
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.flush()
