"""``laplace-lora bench``: options in, a grid out. What is not said comes from the preset, or else from defaults."""

from pathlib import Path
from typing import Annotated, Any

import typer

from laplace_lora.cli import options
from laplace_lora.cli.session import session
from laplace_lora.errors import LaplaceLoRAError

# Everything heavy is imported inside the verb: --help must not wait for torch.


def bench(
    base: Annotated[str, typer.Option(help="Folder or hub id of the base model.", metavar="DIR")],
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl, tables.md, tables.tex and report.html.")],
    preset: Annotated[
        str | None, typer.Option(help="Grid by name: small, for two CPU cores; or paper.", metavar="NAME")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks (see laplace-lora tasks).  [default: the preset's]", metavar="A,B,C")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Methods (see docs/bench.md).  [default: the preset's, or all]", metavar="A,B,C"),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of training.  [default: the preset's, or 0,1,2]", metavar="A,B,C")
    ] = None,
    checkpoints: Annotated[
        str, typer.Option(help="last; or all: MAP and Laplace at every checkpoint too.", metavar="WHICH")
    ] = "last",
    ood: Annotated[
        list[str] | None,
        typer.Option(
            help="Other data to tell apart from a task's: openbookqa=arc_easy,mmlu_law. May be given several times; "
            "none for no such data.  [default: the preset's]",
            metavar="TASK=A,B",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Tasks that a method is confined to: blob=sst2,rte. May be given several times; none for "
            "no such bounds.  [default: the preset's]",
            metavar="METHOD=A,B",
        ),
    ] = None,
    examples: Annotated[
        int | None, typer.Option(min=10, help="Training rows of a task, its first.  [default: all]", metavar="ROWS")
    ] = None,
    test_examples: Annotated[
        int | None, typer.Option(min=2, help="Test rows of a task, its first.  [default: all]", metavar="ROWS")
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(
            min=0.01, max=0.9, help="Share of the training rows, the last, that methods which choose on labels keep."
        ),
    ] = 0.2,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for adapters and predictions.  [default: OUT/cache]")
    ] = None,
    data_dir: options.DataDir = None,
    readout: options.ReadoutName = None,
    prompts: options.Prompts = None,
    max_length: options.MaxLength = None,
    batch_size: options.BatchSize = 16,
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
    train_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows per step of training.  [default: 16]", metavar="ROWS")
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    json_log: options.JsonLog = False,
) -> None:
    """Measure all methods under one protocol: train, fit, predict; tables, a page, and what everything cost.

    What has been done is kept by what it depends on: a run that was interrupted goes on where it was.
    """
    kept = f"what was done is kept in {cache or out / 'cache'}, and the same command goes on from there."
    with session(quiet, json_log, kept) as console:
        from laplace_lora.training import require_training

        require_training()  # what training needs, the benchmark imports
        from laplace_lora import bench as grids
        from laplace_lora.commands import preset_or_none, training_settings

        chosen = grids.bench_preset(preset)
        training = preset_or_none(chosen.training if chosen is not None else None)
        given: dict[str, Any] = {
            "rank": rank,
            "alpha": alpha,
            "dropout": dropout,
            "target_modules": options.split_names(target_modules),
            "epochs": epochs,
            "steps": steps,
            "save_every": save_every,
            "learning_rate": learning_rate,
            "batch_size": train_batch_size,
        }
        changes = {} if chosen is None else dict(chosen.changes)
        wanted = options.split_names(tasks) or (chosen.tasks if chosen is not None else ())
        measured = options.split_names(methods) or (chosen.methods if chosen is not None else tuple(grids.METHODS))
        config = grids.BenchConfig(
            base=base,
            tasks=wanted,
            methods=measured,
            seeds=_numbers(seeds) or (training.seeds if training is not None else (0, 1, 2)),
            out=out,
            cache=cache or out / "cache",
            data_dir=data_dir,
            ood=_lists("--ood", ood) if ood is not None or chosen is None else chosen.ood_of(wanted),
            only=_lists("--only", only) if only is not None or chosen is None else chosen.only_of(wanted, measured),
            training=training_settings(
                training, changes | {name: value for name, value in given.items() if value is not None}
            ),
            examples=examples or (chosen.examples if chosen is not None else None),
            test_examples=test_examples or (chosen.test_examples if chosen is not None else None),
            held_out=held_out,
            all_checkpoints=_all(checkpoints),
            max_length=max_length or (training.max_length if training is not None else None),
            batch_size=batch_size,
            prompts=prompts or (training.prompts if training is not None else None),
            readout=readout,
            padding_side=padding_side or (training.padding_side if training is not None else None),
            quantization=quantization,
            revision=revision,
            dtype=dtype,
            device=device,
        )
        lines = grids.bench(config, console)
        typer.echo(grids.summary(lines))


def _all(checkpoints: str) -> bool:
    if checkpoints not in ("last", "all"):
        raise LaplaceLoRAError(f"--checkpoints {checkpoints} is neither last nor all; choose one.")
    return checkpoints == "all"


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in options.split_names(text) or ())
    except ValueError:
        raise LaplaceLoRAError(f"--seeds {text} are no whole numbers; write them as 0,1,2.") from None


def _lists(option: str, texts: list[str] | None) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for text in () if texts == ["none"] else texts or ():
        name, equals, values = text.partition("=")
        names = options.split_names(values) if equals else None
        if not name or not names:
            raise LaplaceLoRAError(f"{option} {text} is no list; write it as NAME=A,B, or none alone.")
        found[name] = (*found.get(name, ()), *names)
    return found
