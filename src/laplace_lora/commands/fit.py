"""``laplace-lora fit``: one pass over the training data, and a prior."""

import dataclasses
import os
import time
from pathlib import Path

from laplace_lora.commands.console import Console
from laplace_lora.commands.cross_fit import CrossFit
from laplace_lora.commands.inputs import OpenAdapter, open_adapter, require_readable, say_sources
from laplace_lora.commands.output import check_writable
from laplace_lora.commands.readout_choice import ReadoutWish, refuse_prompts, refuse_unused, short_name
from laplace_lora.commands.same_task import require_same_classes
from laplace_lora.commands.settings import AdapterSource, local_or_hub
from laplace_lora.commands.tune import PriorWish, say_prior, starting_point
from laplace_lora.commands.watched import Watched
from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature import backward_passes
from laplace_lora.data import DataFile, Encoder, Source
from laplace_lora.data.encoding import Batches
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.loading import saved_input_format, saved_readout
from laplace_lora.persistence import InputFormat, download_adapter
from laplace_lora.structures import STRUCTURES

#: With more than this share of the errors of always answering the commonest class, the adapter has learnt nothing.
NO_BETTER = 0.95
#: Adapters that cross-fitting trains.
FOLDS = 3


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Settings of ``fit``.

    Attributes:
        source: The adapter.
        data: The adapter's training data, labelled.
        validation: Held-out data, labelled; for ``prior="validation"``.
        label_names: Names of the classes in the order of the logits; as saved with the adapter if None.
        template: Jinja template of an input over a row's fields; by the file's shape if None.
        max_length: Most tokens per input; the model's limit if None.
        batch_size: Rows per forward pass.
        prior: How the prior is chosen.
        laplace: Settings of the posterior.
        out: Folder for the posterior; the adapter's own if None.
        readout: How answers are read from the model; as it was trained by ``train``, or inferred, if nothing is given.
        chat: Whether prompts stand in the tokenizer's chat template; as the adapter was trained if it was by ``train``.
    """

    source: AdapterSource
    data: Source
    validation: Source | None = None
    label_names: tuple[str, ...] | None = None
    template: str | None = None
    max_length: int | None = None
    batch_size: int = 16
    prior: PriorWish = dataclasses.field(default_factory=PriorWish)
    laplace: LaplaceConfig = dataclasses.field(default_factory=LaplaceConfig)
    out: Path | None = None
    readout: ReadoutWish = dataclasses.field(default_factory=ReadoutWish)
    chat: bool = False


def fit(config: FitConfig, console: Console) -> LaplaceLoRA:
    """Fit a posterior to an adapter and save it.

    Args:
        config: Settings.
        console: Takes messages.

    Returns:
        The fitted estimator, as saved.

    Raises:
        LaplaceLoRAError: Something does not fit; nothing is written then.
    """
    wish = config.prior.settled(config.validation)
    require_readable(config.data, config.validation)
    out = _output_folder(config)
    check_writable(out)

    opened = open_adapter(config.source, config.label_names, progress=console.progress)
    folder = download_adapter(local_or_hub(config.source.adapter))
    given = _given_format(config, folder)
    reading = _reading(config, folder)
    data = opened.choose(reading, config.data, given)
    assert opened.readout is not None
    refuse_unused(opened.readout.name, opened.kind, reading, config.label_names)
    for source in (config.data, config.validation):
        require_same_classes(source, opened.layout, opened.label_names)
        refuse_prompts(source, opened.readout.name, given.template)
    form = opened.complete(given, data)
    validation = None if config.validation is None else opened.scan(config.validation, form, "required")
    encoder = opened.encoder(form)

    laplace = dataclasses.replace(config.laplace, progress=console.progress)
    if isinstance(wish.method, float):
        laplace = dataclasses.replace(laplace, prior_precision=wish.method)
    la = LaplaceLoRA(opened.model, laplace, opened.readout, input_format=form)
    start = starting_point(folder, wish)
    cross_fit = None
    if isinstance(wish.method, str):
        la.require_tunable(wish.method, known_start=start is not None)
    if wish.method == "cross_fit":
        cross_fit = CrossFit.of(config.source, folder, config.data, wish.folds or FOLDS, len(data), config.batch_size)
    batches = encoder.batches(data, config.batch_size)
    say_sources(console, config.data, config.validation)
    _say_plan(console, la, opened, batches)
    began = time.perf_counter()
    la.fit(batches)
    seconds = time.perf_counter() - began
    _say_fit(console, la, data, encoder, seconds)
    if wish.method == "validation":
        assert validation is not None
        watched = Watched(encoder.batches(validation, config.batch_size), la)
        la.tune_prior("validation", watched, score=wish.score or "nll", temperature=wish.temperature)
        watched.warn(console, config.validation, "the prior precision chosen on them is too high or too low")
    elif cross_fit is not None:
        folds = cross_fit.adapters(la, opened, form, console)
        la.tune_prior("cross_fit", folds, score=wish.score or "nll", temperature=wish.temperature)
    elif isinstance(wish.method, str):
        la.tune_prior("auto" if wish.method == "auto" else "evidence", starting_point=start)
    say_prior(console, la, wish)
    la.save_pretrained(out)
    console.say("saved", f"posterior saved in {out}", out=str(out), bytes=la.posterior.nbytes)
    return la


def _output_folder(config: FitConfig) -> Path:
    if config.out is not None:
        return config.out
    folder = Path(config.source.adapter)
    if not os.path.isdir(folder):
        raise LaplaceLoRAError(
            f"{folder} is no folder here, so that the posterior cannot be saved beside the adapter; give --out."
        )
    return folder


def _reading(config: FitConfig, folder: Path) -> ReadoutWish:
    """Return what is asked for; what nobody asks for is as ``train`` left it."""
    asked, saved = config.readout, saved_readout(folder)
    if saved is None:
        return asked
    name = short_name(saved.name)
    if asked.name not in (None, name):
        return asked
    if asked.answers is None and asked.normalise is None:
        return ReadoutWish(name, saved=saved)
    return ReadoutWish(name, asked.answers, asked.normalise)


def _given_format(config: FitConfig, folder: Path) -> InputFormat:
    saved = saved_input_format(folder) or InputFormat()
    if config.template is not None:
        saved = dataclasses.replace(saved, template=config.template, pair_template=None)
    if config.chat:
        saved = dataclasses.replace(saved, chat=True)
    if config.max_length is not None:
        saved = dataclasses.replace(saved, max_length=config.max_length)
    return saved


def _say_plan(console: Console, la: LaplaceLoRA, opened: OpenAdapter, batches: Batches) -> None:
    readout = la.readout
    fisher = la.config.fisher_for(opened.classes, readout.name)
    forward, examples = len(batches) * STRUCTURES[la.config.structure].curvature.passes, len(batches.file)
    each = backward_passes(la.config, readout, opened.classes, fitting=True)
    console.say(
        "plan",
        f"fit: {examples} examples, {opened.classes} {'outputs' if readout.full_covariance else 'classes'}, structure "
        f"{la.config.structure}, Fisher {fisher}: {forward} forward and {forward * each} backward passes of up to "
        f"{batches.batch_size} examples, read by {readout!r}",
        examples=examples,
        classes=opened.classes,
        readout=readout.name,
        forward_passes=forward,
        backward_passes=forward * each,
    )


def _say_fit(console: Console, la: LaplaceLoRA, data: DataFile, encoder: Encoder, seconds: float) -> None:
    training = la.training
    assert training is not None and training.nll is not None
    accuracy, nll = training.accuracy, training.nll
    majority = data.majority if data.label_counts else None
    parts = [] if accuracy is None else [f"accuracy {accuracy:.3f}"]
    parts.append(f"NLL {nll:.4f} nats")
    if training.targets is not None:
        parts.append(f"{nll * training.examples / training.targets:.4f} a token of {training.targets:,}")
    about = "" if majority is None else f" (the commonest class: {majority:.3f})"
    console.say(
        "fitted",
        f"the adapter on its training data: {', '.join(parts)}{about}; {seconds:.1f} s",
        accuracy=accuracy,
        nll=nll,
        majority=majority,
        seconds=seconds,
    )
    if encoder.truncated:
        console.warn(
            f"{encoder.truncated} inputs were cut to {encoder.max_length} tokens; if training saw more of them, give "
            "--max-length."
        )
    if majority is not None and accuracy is not None and 1.0 - accuracy > NO_BETTER * (1.0 - majority):
        console.warn(
            f"the adapter is right on {accuracy:.3f} of its training data, no better than always answering the "
            f"commonest class ({majority:.3f}): check the base model, the order of the labels and the template."
        )
    if majority is None and la.readout.name == "pairwise_reward" and accuracy is not None and accuracy < 0.55:
        console.warn(
            f"the adapter prefers the chosen text in {accuracy:.3f} of its training pairs, no better than chance: "
            "check the base model, and which text is the chosen one."
        )
