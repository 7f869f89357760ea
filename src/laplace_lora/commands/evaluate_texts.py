"""Evaluating the likelihood of texts, token by token."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from laplace_lora.commands.inputs import warn_of_cuts
from laplace_lora.commands.output import whole_files
from laplace_lora.commands.prepared import Prepared, write_json, write_lines
from laplace_lora.commands.records import text_records
from laplace_lora.evaluation.figures import Figures, Measure, figures_table, measure
from laplace_lora.evaluation.metrics import binned
from laplace_lora.evaluation.plain_report import plain_report
from laplace_lora.methods.sampled_tokens import TokenScores, sampled_token_scores
from laplace_lora.predictive import Predictive

DESCRIPTIONS = {
    "nll": "negative log-likelihood (nats per token)",
    "accuracy": "share of tokens that are the likeliest one",
    "ece": "calibration error of the likeliest token (ECE)",
    "confidence": "mean probability of the likeliest token",
}
#: Adapters drawn, if nobody says.
SAMPLES = 8


def evaluate_texts(ready: Prepared) -> tuple[Figures, str]:
    """Measure next-token probabilities of the trained adapter, and averaged over adapters drawn from the posterior.

    Every batch takes one forward and one backward pass for the variance of its texts' log-probabilities, and a
    forward pass for each adapter drawn.

    Args:
        ready: Adapter, posterior and data.

    Returns:
        The figures, and a table for a terminal.
    """
    la, config = ready.la, ready.config
    predictive, seconds, _ = ready.evaluated()
    start = time.perf_counter()
    count = config.samples or SAMPLES
    states = la.sample(count, seed=la.config.seed)
    bar = tqdm(ready.batches, desc="sampled", unit="batch", disable=not ready.console.progress)
    parts = [sampled_token_scores(la.model, la.readout, batch, states) for batch in bar]
    seconds["sampled"] = time.perf_counter() - start
    scores = {name: TokenScores.joined([part[name] for part in parts]) for name in ("map", "laplace")}
    figures = measure({name: _measures(score) for name, score in scores.items()})
    warn_of_cuts(ready.encoder, ready.console)
    tokens = int(scores["map"].counts.sum())
    report = plain_report(
        figures,
        DESCRIPTIONS,
        title="Next tokens before and after a Laplace posterior",
        subtitle=f"{ready.subtitle}, {tokens:,} tokens",
        curves={name: _reliability(score) for name, score in scores.items()},
        caption="Confidence in the likeliest token against how often it is right: on the diagonal, both agree.",
        axes=("confidence", "accuracy"),
        data=ready.data_set,
        details=ready.details(seconds, [("Adapters drawn", count), ("Tokens", f"{tokens:,}")]),
    )
    with whole_files(config.out) as folder:
        more: dict[str, Any] = {"tokens": tokens, "samples": count}
        write_json(folder / "metrics.json", ready.document(figures.to_dict(), seconds, **more))
        write_lines(folder / "predictions.jsonl", _records(ready, predictive, scores["map"]))
        (folder / "report.html").write_text(report, encoding="utf-8")
    return figures, figures_table(figures, DESCRIPTIONS)


def _measures(scores: TokenScores) -> dict[str, Measure | float]:
    texts = np.repeat(np.arange(len(scores.counts)), scores.counts)

    def per_text(values: Any) -> Any:
        return np.bincount(texts, weights=values, minlength=len(scores.counts))

    weights = scores.counts.astype(np.float64)
    return {
        "nll": Measure(per_text(-scores.log_probability), weights),
        "accuracy": Measure(per_text(scores.correct), weights),
        "ece": binned(scores.confidence, scores.correct).ece,
        "confidence": Measure(per_text(scores.confidence), weights),
    }


def _reliability(scores: TokenScores) -> tuple[Any, Any]:
    diagram = binned(scores.confidence, scores.correct)
    full = diagram.counts > 0
    return diagram.confidence[full], diagram.accuracy[full]


def _records(ready: Prepared, predictive: Predictive, scores: TokenScores) -> Iterator[dict[str, Any]]:
    counts = torch.from_numpy(scores.counts)
    for example, record in zip(ready.data, text_records(predictive, counts), strict=True):
        yield {**record, "text": example.shown}
