"""Adapters trained as the one at hand was, on all of its rows but a fold: what they say of the fold tunes the prior."""

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laplace_lora.adapters import read_saved_adapter
from laplace_lora.commands.console import Console
from laplace_lora.commands.inputs import OpenAdapter, open_adapter
from laplace_lora.commands.readout_choice import ReadoutWish, short_name
from laplace_lora.commands.settings import AdapterSource
from laplace_lora.commands.train import TrainConfig, train
from laplace_lora.data import FoldRows, Source
from laplace_lora.data.encoding import Batches
from laplace_lora.errors import AdapterFileError, LaplaceLoRAError, first_line
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.persistence import TRAINING_NAME, InputFormat
from laplace_lora.training import TrainingSettings

_REMEDY = "tune on held-out rows (--validation) or by the evidence (--prior evidence)"


@dataclasses.dataclass(frozen=True)
class CrossFit:
    """What is needed to train an adapter's like.

    Attributes:
        source: The adapter.
        training: How it was trained.
        data: The rows it was trained on.
        folds: Number of folds.
        batch_size: Rows per forward pass of what follows the training.
    """

    source: AdapterSource
    training: TrainConfig
    data: Source
    folds: int
    batch_size: int

    @classmethod
    def of(
        cls, source: AdapterSource, folder: Path, data: Source, folds: int, examples: int, batch_size: int
    ) -> "CrossFit":
        """Read how an adapter was trained.

        Args:
            source: The adapter.
            folder: Where its files are.
            data: The rows it was trained on.
            folds: Number of folds.
            examples: Number of rows.
            batch_size: Rows per forward pass of what follows the training.

        Returns:
            The plan; nothing has been run.

        Raises:
            LaplaceLoRAError: It was not trained by ``laplace-lora train``, or with held-out rows that say when to stop,
                or there are fewer rows than folds.
        """
        if not 2 <= folds <= examples:
            raise LaplaceLoRAError(
                f"{folds} folds of {examples} rows cannot be made; give --folds from 2 to {examples}."
            )
        return cls(source, _training_of(source, folder, data, examples), data, folds, batch_size)

    def adapters(self, la: LaplaceLoRA, opened: OpenAdapter, form: InputFormat, console: Console) -> Iterator[Any]:
        """Train, fit and hand over one fold's adapter after the other.

        Args:
            la: The estimator that is to be tuned, whose settings they take.
            opened: Its adapter.
            form: How inputs are made.
            console: Takes messages.

        Yields:
            A fitted estimator, and the batches of its fold. Its files are gone when the next one is asked for.
        """
        for fold in range(self.folds):
            with tempfile.TemporaryDirectory() as scratch:
                console.say("fold", f"fold {fold + 1} of {self.folds}: training on the other rows", fold=fold)
                yield self._one(fold, Path(scratch) / "adapter", la, opened, form, console)

    def _one(
        self, fold: int, out: Path, la: LaplaceLoRA, opened: OpenAdapter, form: InputFormat, console: Console
    ) -> tuple[LaplaceLoRA, Batches]:
        classes = opened.classes if opened.kind == "classifier" else None
        kept, held_out = (FoldRows(self.data, fold, self.folds, classes, held_out=held) for held in (False, True))
        train(dataclasses.replace(self.training, data=kept, out=out), _Silent(console.quiet, console.json_log))
        source = dataclasses.replace(self.source, adapter=str(out), base=self.training.model)
        its = open_adapter(source, opened.label_names)
        its.readout, its.classes, its.label_names = opened.readout, opened.classes, opened.label_names
        encoder = its.encoder(form)
        fitted = LaplaceLoRA(its.model, la.config, its.readout, input_format=form)
        fitted.fit(encoder.batches(its.scan(kept, form, "required"), self.batch_size))
        return fitted, encoder.batches(its.scan(held_out, form, "required"), self.batch_size)


class _Silent(Console):
    """Bars, and no lines: each fold's training would say what the first has said."""

    def say(self, event: str, message: str, **figures: Any) -> None:
        """Say nothing."""


def _training_of(source: AdapterSource, folder: Path, data: Source, examples: int) -> TrainConfig:
    path = folder / TRAINING_NAME
    if not path.exists():
        raise LaplaceLoRAError(
            f"cross-fitting trains adapters as this one was trained, and {folder} does not say how: {TRAINING_NAME} is "
            f"missing, which laplace-lora train writes; {_REMEDY}."
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        settings, form = document["settings"], document["input_format"]
        training = dict(settings["training"])
        names = training["target_modules"]
        training["target_modules"] = None if names is None else tuple(names)
        wish = settings["readout"]
        asked = ReadoutWish(short_name(document["readout"]["name"]), _tuple(wish["answers"]), wish["normalise"])
        held_out = settings["validation"]
        base = source.base or read_saved_adapter(folder).config["base_model_name_or_path"]
        config = TrainConfig(
            model=str(base),
            data=data,
            out=folder,
            label_names=_tuple(settings["label_names"]),
            template=settings["template"],
            max_length=settings["max_length"],
            revision=source.revision or settings["revision"],
            training=TrainingSettings(**training),
            readout=asked,
            quantization=source.quantization or settings["quantization"],
            padding_side=form["padding_side"],
            chat=settings["chat"],
        )
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise AdapterFileError(
            f"{path} is damaged ({first_line(error)}); copy the adapter again, or {_REMEDY}."
        ) from error
    if held_out is not None:
        raise LaplaceLoRAError(
            f"the adapter's training stopped by its loss on {held_out}, rows that it was not trained on: tune on them "
            "(--validation), which costs no training."
        )
    return dataclasses.replace(config, training=_as_far(config.training, folder, examples))


def _as_far(training: TrainingSettings, folder: Path, examples: int) -> TrainingSettings:
    """Go as far through a run, in passes over the rows, as the adapter did: to its end, or to a checkpoint."""
    per_epoch = math.ceil(examples / training.batch_size)
    total = training.steps or training.epochs * per_epoch
    if training.steps is not None:  # as many passes over fewer rows
        training = dataclasses.replace(training, steps=None, epochs=max(1, round(total / per_epoch)))
    number = folder.name.removeprefix("checkpoint-")
    if folder.parent.name == "checkpoints" and number.isdecimal() and int(number) < total:
        return dataclasses.replace(training, stop_after=int(number) / total)
    return training


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
