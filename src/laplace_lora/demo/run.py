"""One run of the demo: make data, train, fit the posterior, tune its prior, compare, report."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from laplace_lora.config import LaplaceConfig
from laplace_lora.demo.encoder import encoder_folder
from laplace_lora.demo.training import batches, train_adapter
from laplace_lora.evaluation import Comparison, Predictions, Probabilities, compare, write_picture, write_report
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.tasks import LABEL_NAMES, Review, make_splits


@dataclasses.dataclass(frozen=True)
class DemoConfig:
    """Sizes and settings of the demo, chosen on development seeds that are not among the reported ones.

    Attributes:
        train: Training sentences.
        validation: Held-out sentences on which the prior precision is chosen.
        test: Held-out sentences on which everything is measured.
        rank: LoRA rank.
        epochs: Passes over the training sentences.
        learning_rate: Of AdamW, for the adapter.
        head_learning_rate: The same for the head, which starts from scratch.
        batch_size: Sentences per training step.
        laplace: Settings of the posterior.
    """

    train: int = 250
    validation: int = 300
    test: int = 300
    rank: int = 8
    epochs: int = 16
    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-2
    batch_size: int = 16
    laplace: LaplaceConfig = dataclasses.field(default_factory=LaplaceConfig)


def small_config() -> DemoConfig:
    """Return sizes for an end-to-end test: everything runs, the figures mean little.

    Returns:
        The configuration.
    """
    return DemoConfig(train=48, validation=48, test=64, epochs=4)


@dataclasses.dataclass(frozen=True)
class SeedResult:
    """What one seed gave.

    Attributes:
        seed: The seed of data, start and order.
        train_accuracy: MAP's accuracy on the training sentences.
        comparison: MAP against Laplace on the held-out sentences.
        prior_precision: As chosen on the validation sentences.
        seconds: Wall time of each stage.
    """

    seed: int
    train_accuracy: float
    comparison: Comparison
    prior_precision: float | dict[str, float]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values.

        Returns:
            Everything.
        """
        return {
            "seed": self.seed,
            "train_accuracy": self.train_accuracy,
            **self.comparison.to_dict(),
            "prior_precision": self.prior_precision,
            "seconds": self.seconds,
        }


def train_as_configured(
    config: DemoConfig, rows: list[dict[str, Any]], seed: int, *, progress: bool = True
) -> tuple[Any, Any]:
    """Train the demo's adapter.

    Args:
        config: Sizes and settings.
        rows: ``text`` and ``label`` each.
        seed: Of the adapter's start and the order of training.
        progress: Whether to show a progress bar.

    Returns:
        The model and its tokenizer.
    """
    return train_adapter(
        encoder_folder(),
        rows,
        classes=len(LABEL_NAMES),
        rank=config.rank,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        head_learning_rate=config.head_learning_rate,
        batch_size=config.batch_size,
        seed=seed,
        progress=progress,
    )


def run_seed(config: DemoConfig, seed: int, out: Path, *, command: str, progress: bool = True) -> SeedResult:
    """Run the demo once and write its report.

    Args:
        config: Sizes and settings.
        seed: Of the data, the adapter's start and the order of training.
        out: Folder for report.html, picture.png, metrics.json and predictions.jsonl.
        command: What was typed, for the report's footer.
        progress: Whether to show progress bars.

    Returns:
        The figures.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[name], clock = now - clock, now

    splits = make_splits({"train": config.train, "test": config.test, "validation": config.validation}, seed)
    train, test, validation = (_rows(splits[name]) for name in ("train", "test", "validation"))
    model, tokenizer = train_as_configured(config, train, seed, progress=progress)
    lap("train")
    la = LaplaceLoRA(model, dataclasses.replace(config.laplace, progress=progress))
    la.fit(batches(train, tokenizer, 32))
    lap("fit")
    la.tune_prior("validation", batches(validation, tokenizer, 32))
    lap("tune")
    predictive = la.predict_dataset(batches(test, tokenizer, 32)).numpy()
    lap("predict")
    truth = np.array([[1.0 - review.probability, review.probability] for review in splits["test"]])
    labels = np.array([review.label for review in splits["test"]])
    methods = {
        "map": Probabilities(predictive["map_probabilities"]),
        "laplace": Probabilities(predictive["probabilities"]),
    }
    comparison = compare(methods, labels, truth)
    predictions = Predictions(
        labels=labels,
        methods=methods,
        label_names=LABEL_NAMES,
        texts=[review.text for review in splits["test"]],
        truth=truth,
        epistemic=predictive["mutual_information"],
    )
    accuracy = la.train_accuracy
    assert accuracy is not None
    result = SeedResult(seed, accuracy, comparison, la.prior_precision, seconds)
    _write(out, result, predictions, predictive, config, command)
    lap("report")
    return result


def _rows(reviews: list[Review]) -> list[dict[str, Any]]:
    return [{"text": review.text, "label": review.label} for review in reviews]


def _write(
    out: Path,
    result: SeedResult,
    predictions: Predictions,
    predictive: dict[str, Any],
    config: DemoConfig,
    command: str,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    subtitle = (
        f"all-MiniLM-L6-v2 with a LoRA adapter (rank {config.rank} on query and value) and a new head, trained on "
        f"{config.train} made-up reviews until it fits {100 * result.train_accuracy:.1f} % of them. The prior was "
        f"chosen on {config.validation} others, and everything is measured on {config.test} more. The true probability "
        "of every label is known, because the sentences were made with it."
    )
    write_report(
        out / "report.html",
        result.comparison,
        predictions,
        title="Before and after a Laplace posterior",
        subtitle=subtitle,
        footer=f"Made by: {command} (seed {result.seed})",
        details=[
            ("Training, validation, test sentences", f"{config.train}, {config.validation}, {config.test}"),
            ("Seed", result.seed),
            ("Posterior", config.laplace.structure),
            ("Prior precision, chosen by validation", result.prior_precision),
            *((f"Seconds: {stage}", f"{seconds:.1f}") for stage, seconds in result.seconds.items()),
        ],
    )
    write_picture(out / "picture.png", result.comparison, predictions)
    (out / "metrics.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    with (out / "predictions.jsonl").open("w", encoding="utf-8") as file:
        for i, text in enumerate(predictions.texts or ()):
            row = {
                "text": text,
                "label": int(predictions.labels[i]),
                "probabilities": predictive["probabilities"][i].tolist(),
                "map_probabilities": predictive["map_probabilities"][i].tolist(),
                "total_entropy": float(predictive["total_entropy"][i]),
                "aleatoric_entropy": float(predictive["aleatoric_entropy"][i]),
                "mutual_information": float(predictive["mutual_information"][i]),
            }
            file.write(json.dumps(row) + "\n")
