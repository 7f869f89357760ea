"""``laplace-lora acquire``: which rows of an unlabelled pool to label next."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from laplace_lora.acquisition import METHODS, Batch, Method, find_method
from laplace_lora.commands.console import Console
from laplace_lora.commands.inputs import OpenAdapter, say_sources, warn_of_cuts
from laplace_lora.commands.prepared import open_posterior
from laplace_lora.commands.records import real_records, records, require_numbers
from laplace_lora.commands.same_task import require_same_classes
from laplace_lora.commands.settings import AdapterSource
from laplace_lora.commands.streams import STANDARD, check_output, readable, written
from laplace_lora.curvature import backward_passes
from laplace_lora.data import Source, open_rows
from laplace_lora.data.encoding import Batches
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.laplace import LaplaceLoRA

#: Rows of a batch, and rows it is chosen among, where nothing else is said.
DEFAULT_TOP, DEFAULT_CANDIDATES = 25, 300
# Nats below log(draws) beyond which gains are too small.
_HEADROOM = 2.0


@dataclasses.dataclass(frozen=True)
class AcquireConfig:
    """Settings of ``acquire``.

    Attributes:
        source: The adapter.
        data: Rows whose labels, where there are any, are not read: a file, a task's, or ``-`` for standard input.
        out: JSONL file to write, or ``-`` for standard output.
        method: Key of :data:`laplace_lora.acquisition.METHODS`.
        top: Write only so many rows, the best; if None all, with a batch 25.
        candidates: Rows that a batch is chosen among, those of the largest scores by themselves; 300 if None.
        posterior: Folder or hub id of the posterior; the adapter's own if None.
        batch_size: Rows per forward pass.
    """

    source: AdapterSource
    data: str | Source
    out: str
    method: str = "batch_bald"
    top: int | None = None
    candidates: int | None = None
    posterior: str | None = None
    batch_size: int = 16


def acquire(config: AcquireConfig, console: Console) -> int:
    """Rank the rows of a pool by what their labels would tell.

    Args:
        config: Settings.
        console: Takes messages.

    Returns:
        Number of rows written.

    Raises:
        LaplaceLoRAError: Something does not fit; nothing is written then.
    """
    method = find_method(config.method)
    top, most = _sizes(config, method)
    check_output(config.out, config.data, "acquired")
    with readable(config.data) as (path, name):
        next(open_rows(path, name), None)  # a wrong path is told before a model is loaded
        opened, la = open_posterior(config.source, config.posterior, console)
        if la.readout.name == "next_token":
            raise LaplaceLoRAError(
                f"acquire ranks rows by what a label tells, and {la.readout!r} reads log-probabilities of texts; rank "
                "those by predict's sd."
            )
        la.config = dataclasses.replace(la.config, progress=console.progress)
        form, layout = la.input_format, opened.layout
        require_same_classes(path, layout, opened.label_names)
        data = opened.scan(path, form, "ignored", name)
        if la.readout.name == "option_scores":
            opened.classes = max(opened.classes, data.most_choices)
        encoder = opened.encoder(opened.complete(form, data), layout)
        batches = encoder.batches(data, config.batch_size)
        say_sources(console, path)
        passes = len(batches) * backward_passes(la.config, la.readout, opened.classes)
        console.say(
            "plan",
            f"acquire: {len(data)} rows: {len(batches)} forward and {passes} backward passes"
            + (f", and those of {min(most, len(data))} candidates once more" if method.batch else ""),
            examples=len(data),
            forward_passes=len(batches),
            backward_passes=passes,
        )
        pool = _scored(batches, opened, la, method, console)
        _require_unseen(pool, len(data), name, console)
        if method.batch is None:
            chosen = [(row, row.score) for row in pool.best(top)]
        else:
            candidates = sorted(pool.best(most), key=lambda row: row.position)
            joint = la.predict_joint(_selected(batches, {row.position for row in candidates}))
            batch = method.batch(joint, top or DEFAULT_TOP, memory_limit_bytes=la.config.memory_limit_bytes)
            _say_batch(batch, len(candidates), console)
            chosen = [(candidates[i], gain) for i, gain in zip(batch.index, batch.gains, strict=True)]
        places = [(row.line, row.fields.get("id")) for row in open_rows(path, name)]
        with written(config.out) as out, out.open("w", encoding="utf-8") as file:
            for rank, (row, score) in enumerate(chosen, start=1):
                line, identity = places[row.position]
                where = {"rank": rank, "score": score, "row": row.position, "line": line}
                where |= {} if identity is None else {"id": identity}
                file.write(json.dumps({**where, **row.prediction}, ensure_ascii=False, default=str) + "\n")
    warn_of_cuts(encoder, console)
    if config.out != STANDARD:
        console.say("saved", f"{len(chosen)} rows in {config.out}", out=config.out, examples=len(chosen))
    return len(chosen)


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of the pool: its position, its score by itself, and what is predicted of it."""

    position: int
    score: float
    prediction: dict[str, Any]


@dataclasses.dataclass
class _Pool:
    """Rows that the posterior was not fitted to, and how many others there were."""

    rows: list[_Row]
    seen: int = 0

    def best(self, count: int | None) -> list[_Row]:
        """Return the rows of the largest scores, equal ones in their order."""
        return sorted(self.rows, key=lambda row: -row.score)[:count]


def _sizes(config: AcquireConfig, method: Method) -> tuple[int | None, int]:
    """Return how many rows are written and among how many a batch is chosen."""
    if method.batch is None:
        if config.candidates is not None:
            raise LaplaceLoRAError(
                f"--candidates belongs to batches, and {config.method} ranks every row by itself; leave it out, or "
                f"give --method {next(name for name, each in METHODS.items() if each.batch)}."
            )
        return config.top, DEFAULT_CANDIDATES
    top, most = config.top or DEFAULT_TOP, config.candidates or DEFAULT_CANDIDATES
    if top > most:
        raise LaplaceLoRAError(f"--top {top} is more than the {most} candidates; give --candidates {top} or more.")
    return top, most


def _scored(batches: Batches, opened: OpenAdapter, la: LaplaceLoRA, method: Method, console: Console) -> _Pool:
    pool, position = _Pool([]), 0
    for batch in tqdm(batches, desc="acquire", unit="batch", disable=not console.progress):
        seen = la.seen_in_fit(batch)
        positions = (position + (~seen).nonzero()[:, 0]).tolist()
        position += len(seen)
        pool.seen += int(seen.sum())
        if not positions:
            continue
        predictive = la.predict({key: value[~seen] for key, value in batch.items()})
        require_numbers(predictive)
        scores = method.score(predictive).tolist()
        if la.readout.name == "scalar":
            found = [_some(record, "mean", "sd") for record in real_records(predictive, la.noise_variance)]
        else:
            found = [_some(record, "label", "confidence") for record in records(predictive, opened)]
        pool.rows += map(_Row, positions, scores, found)
    return pool


def _some(record: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: record[name] for name in names}


def _selected(batches: Iterable[dict[str, Tensor]], positions: set[int]) -> Iterator[dict[str, Tensor]]:
    """Yield the batches' rows at some positions."""
    start = 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        keep = torch.tensor([start + i in positions for i in range(size)])
        start += size
        if keep.any():
            yield {key: value[keep] for key, value in batch.items()}


def _require_unseen(pool: _Pool, rows: int, name: str, console: Console) -> None:
    if not pool.rows:
        raise LaplaceLoRAError(
            f"all {rows} rows in {name} were in the posterior's training data, and have labels; give other rows."
        )
    if pool.seen:
        console.warn(
            f"{pool.seen} of {rows} rows in {name} were in the posterior's training data, and are left out: they have "
            "labels."
        )


def _say_batch(batch: Batch, candidates: int, console: Console) -> None:
    console.say(
        "batch",
        f"{len(batch.index)} of {candidates} candidates, whose labels tell {batch.information:.3f} nats together",
        candidates=candidates,
        information=batch.information,
    )
    if batch.draws is not None and batch.information > math.log(batch.draws) - _HEADROOM:
        console.warn(
            f"of {batch.draws} draws of the posterior labels cannot tell more than {math.log(batch.draws):.1f} nats: "
            "the last of these rows are chosen by next to nothing. Label in smaller batches, by a smaller --top."
        )
