"""What ``train --dry-run`` says: everything that a run would do, resolved, in lines for people."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import peft

from laplace_lora.commands.readout_choice import Answered
from laplace_lora.data import DataFile
from laplace_lora.errors import DataFileError
from laplace_lora.persistence import InputFormat
from laplace_lora.presets import Preset
from laplace_lora.tasks import TaskSplit
from laplace_lora.training import TrainingSettings


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training run before its first step.

    Attributes:
        model: The base model's name.
        network: The model with its fresh adapter.
        tokenizer: Its tokenizer.
        settings: Of adapter and optimizer.
        preset: The preset that was asked for, or None.
        quantization: How the base is quantised, or None.
        data: Training data.
        validation: Data to stop early by, or None.
        settled: Readout and classes.
        form: How inputs are made.
        lengths: Tokens of every training input.
        truncated: Inputs that were cut.
    """

    model: str
    network: peft.PeftModel
    tokenizer: Any
    settings: TrainingSettings
    preset: Preset | None
    quantization: str | None
    data: DataFile
    validation: DataFile | None
    settled: Answered
    form: InputFormat
    lengths: Sequence[int]
    truncated: int

    def text(self) -> str:
        """Return all of it.

        Returns:
            Lines of ``name: what``.
        """
        return "\n".join(f"{f'{name}:' if name else '':<16}{value}" for name, value in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        base = self.network.get_base_model()
        if self.preset is not None:
            yield "preset", f"{self.preset.name} - {self.preset.about}"
        how = f"quantised by {self.quantization}" if self.quantization else f"in {base.dtype}".replace("torch.", "")
        yield "base", f"{self.model} ({type(base).__name__}), {how}"
        if self.preset is not None and self.preset.quantization and not self.quantization:
            yield "", f"the publication quantises it: --quantization {self.preset.quantization}"
        yield "training data", self.data.described
        if self.validation is not None:
            yield "validation", self.validation.described
        yield "evaluation", _evaluation(self.data)
        yield from self._reading()
        yield from self._training()
        if self.preset is not None and self.preset.prompts and not isinstance(self.data.source, TaskSplit):
            yield "note", f"{self.data.name} is a file: the preset's prompts belong to tasks, and are not used"
        for note in self.preset.notes if self.preset is not None else ():
            yield "note", note

    def _reading(self) -> Iterator[tuple[str, str]]:
        readout, form = self.settled.readout, self.form
        yield "read by", f"{readout.name}, {self.settled.classes} classes"
        answers = self.settled.shown_answers(self.tokenizer)
        if answers is not None:
            yield "answer tokens", answers
        yield "template", repr(form.template)[1:-1] + (" (in the tokenizer's chat template)" if form.chat else "")
        if form.pair_template is not None:
            yield "second text", repr(form.pair_template)[1:-1]
        limit = form.max_length or "any number of"
        yield (
            "inputs",
            f"at most {limit} tokens, padded on the {form.padding_side}; the longest has {max(self.lengths)}, "
            f"{self.truncated} are cut",
        )

    def _training(self) -> Iterator[tuple[str, str]]:
        settings, trained = self.settings, self.network.get_nb_trainable_parameters()
        config: Any = self.network.peft_config["default"]
        yield (
            "adapter",
            f"LoRA r={config.r}, alpha={config.lora_alpha}, dropout {config.lora_dropout:g} on "
            f"{', '.join(sorted(config.target_modules))}; {trained[0]:,} of {trained[1]:,} weights are trained",
        )
        clipping = f"gradients clipped to {settings.most_gradient:g}" if settings.most_gradient else "no clipping"
        yield (
            "optimizer",
            f"AdamW, learning rate {settings.learning_rate:g} falling linearly after {settings.warmup:.0%} of warm-up, "
            f"weight decay {settings.weight_decay:g}, {clipping}",
        )
        per_epoch = -(-len(self.data) // settings.batch_size)
        steps = settings.steps or settings.epochs * per_epoch
        every = settings.save_every or per_epoch
        yield (
            "steps",
            f"{steps:,} of {settings.batch_size} rows ({steps / per_epoch:.1f} epochs), a checkpoint every {every:,} "
            f"({-(-steps // every)} in all)",
        )
        others = [seed for seed in (self.preset.seeds if self.preset else ()) if seed != settings.seed]
        more = f"; the preset's others, each by --seed: {', '.join(map(str, others))}" if others else ""
        yield "seed", f"{settings.seed}{more}"


def _evaluation(data: DataFile) -> str:
    if not isinstance(data.source, TaskSplit):
        return "laplace-lora evaluate --data FILE, labelled rows that the adapter has not seen"
    task = data.source.task
    try:
        return TaskSplit(task, task.evaluation, data.source.folder).shown
    except DataFileError as error:
        return f"not to be had: {error}"
