"""``laplace-lora train``: options in, settings out. What is not said comes from the preset, or else from defaults."""

from pathlib import Path
from typing import Annotated, Any

import typer

from laplace_lora.cli import options
from laplace_lora.cli.session import session

# Everything heavy is imported inside the verb: --help must not wait for torch.


def train(
    model: Annotated[str, typer.Option(help="Folder or hub id of the base model.", metavar="DIR")],
    data: options.Data,
    out: Annotated[Path, typer.Option(help="New folder for the adapter and its checkpoints.")],
    validation: Annotated[
        str | None,
        typer.Option(
            help="Held-out rows, labelled: the checkpoint with the least loss on them is kept.",
            metavar="FILE|TASK:SPLIT",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Published set-up: paper, paper-glue, successors; or small, for two CPU cores. Every other option "
            "takes its place where it is given.",
            metavar="NAME",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve everything, say what would be done, train and write nothing.")
    ] = False,
    readout: options.ReadoutName = None,
    answers: options.Answers = None,
    normalise: options.Normalise = None,
    labels: options.Labels = None,
    prompts: options.Prompts = None,
    template: options.Template = None,
    chat: options.Chat = False,
    max_length: options.MaxLength = None,
    padding_side: options.PaddingSide = None,
    revision: options.BaseRevision = None,
    quantization: options.Quantization = None,
    rank: options.Rank = None,
    alpha: options.Alpha = None,
    dropout: options.Dropout = None,
    target_modules: options.TargetModules = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    save_every: options.SaveEvery = None,
    learning_rate: options.LearningRate = None,
    warmup: Annotated[
        float | None,
        typer.Option(min=0.0, max=0.99, help="Share of the steps in which the rate rises.  [default: 0.06]"),
    ] = None,
    head_learning_rate: Annotated[
        float | None, typer.Option(min=0.0, max=10.0, help="The same of the new head.  [default: as --learning-rate]")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0.0, max=10.0, help="Of AdamW.  [default: 0]")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows per step.  [default: 16]", metavar="ROWS")] = None,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Checkpoints without less validation loss before stopping.  [default: 2]"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of the start, dropout and the order of rows.  [default: the preset's first, or 0]"),
    ] = None,
    quiet: options.Quiet = False,
    json_log: options.JsonLog = False,
) -> None:
    """Fine-tune a LoRA adapter: classes, choices, answers, preferences, numbers or texts; with checkpoints."""
    with session(quiet, json_log) as console:
        from laplace_lora import commands
        from laplace_lora.errors import LaplaceLoRAError

        chosen = commands.preset_or_none(preset)
        given: dict[str, Any] = {
            "rank": rank,
            "alpha": alpha,
            "dropout": dropout,
            "target_modules": options.split_names(target_modules),
            "epochs": epochs,
            "steps": steps,
            "save_every": save_every,
            "learning_rate": learning_rate,
            "warmup": warmup,
            "head_learning_rate": head_learning_rate,
            "weight_decay": weight_decay,
            "batch_size": batch_size,
            "patience": patience,
            "seed": seed,
        }
        if patience is not None and validation is None:
            raise LaplaceLoRAError("--patience waits for less loss on --validation, and there is none; leave it out.")
        whose = commands.prompts_of(prompts, chosen, data, template, readout)
        config = commands.TrainConfig(
            model=model,
            data=options.source(data, "train", data_dir, whose),
            out=out,
            validation=options.source(validation, None, data_dir, whose),
            label_names=options.split_names(labels),
            template=template,
            max_length=max_length or (chosen.max_length if chosen is not None else None),
            revision=revision,
            training=commands.training_settings(chosen, given),
            readout=commands.ReadoutWish(readout, options.split_names(answers), normalise),
            quantization=quantization,
            preset=chosen,
            padding_side=padding_side,
            chat=chat,
        )
        if dry_run:
            typer.echo(commands.dry_run(config, console))
        else:
            commands.train(config, console)
