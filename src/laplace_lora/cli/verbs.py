"""The verbs that work on trained adapters: options in, settings out, and the work elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from laplace_lora.cli import options
from laplace_lora.cli.session import session

if TYPE_CHECKING:
    from laplace_lora.commands import AdapterSource

# Everything heavy is imported inside the verbs: --help must not wait for torch.


def fit(
    adapter: options.Adapter,
    data: options.Data,
    validation: Annotated[
        str | None,
        typer.Option(
            help="Held-out rows, labelled, to choose the prior precision on: a file, or as TASK:train[80%:].",
            metavar="FILE|TASK:SPLIT",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    prompts: options.Prompts = None,
    readout: options.ReadoutName = None,
    answers: options.Answers = None,
    normalise: options.Normalise = None,
    base: options.Base = None,
    revision: options.Revision = None,
    labels: options.Labels = None,
    template: options.Template = None,
    chat: options.Chat = False,
    max_length: options.MaxLength = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    structure: Annotated[
        str,
        typer.Option(
            help="Posterior: kron, kron_svd, ekfac, diag, exact, low_rank, kron_low_rank, isotropic or last_layer."
        ),
    ] = "kron",
    factor_rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Directions by which Kronecker factors wider than twice as many (kron_svd: than as many) are kept; "
            "narrower ones are exact. With low_rank and kron_low_rank, directions of all weights together.  "
            "[default: 64; 10 with kron_svd; 200 with low_rank]",
        ),
    ] = None,
    target_modules: Annotated[
        str | None,
        typer.Option(
            help="Modules of the adapter that the posterior covers; the rest stays as trained: query,classifier.  "
            "[default: all]",
            metavar="A,B,C",
        ),
    ] = None,
    layers_to_transform: Annotated[
        str | None,
        typer.Option(
            help="Layers that it covers, -1 the last; the backward pass stops below the lowest: -2,-1.  [default: all]",
            metavar="I,J,K",
        ),
    ] = None,
    fisher: Annotated[
        str,
        typer.Option(
            help="Curvature: exact (K-1 backward passes per batch for K classes), rademacher, mc or empirical (one); "
            "auto is exact up to 16 classes, and mc for texts."
        ),
    ] = "auto",
    prior: Annotated[
        str | None,
        typer.Option(
            help="Prior precision: auto (the evidence of the training data, raised where it would do harm), evidence, "
            "validation, cross-fit (train more adapters, each on all rows but a fold, and tune on their folds), or a "
            "number in 1 / weight^2.  [default: validation with --validation, else auto]"
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(help="What held-out rows are scored by: nll, brier or ece.  [default: nll]"),
    ] = None,
    temperature: Annotated[
        bool,
        typer.Option(
            "--temperature/--no-temperature", help="Held-out rows choose a temperature of the mean logits too."
        ),
    ] = True,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Adapters that cross-fit trains, one after the other.  [default: 3]")
    ] = None,
    prior_mean: Annotated[
        str | None,
        typer.Option(
            help="Mean of the prior in auto and evidence: start (the adapter before its training) or zero.  [default: "
            "start where train has left it, else zero]"
        ),
    ] = None,
    prior_groups: Annotated[
        str,
        typer.Option(help="What shares a prior precision: global (all), role (A, B, head), module or matrix."),
    ] = "global",
    rows_folder: Annotated[
        Path | None,
        typer.Option(
            help="With --structure exact: a folder on a disk with room for 4 bytes per weight and row, N (K-1) rows of "
            "N examples; they are gone when fit ends, and the posterior is as large again.  [default: rows in memory]",
            metavar="DIR",
        ),
    ] = None,
    rows_dtype: Annotated[
        str, typer.Option(help="With --structure exact, of its rows: auto (float32), float32 or bfloat16 (half).")
    ] = "auto",
    predictive: Annotated[
        str,
        typer.Option(
            help="How probabilities follow from Gaussian logits: integral (deterministic quadrature), or, for "
            "comparison, probit, laplace_bridge or mc (random draws)."
        ),
    ] = "integral",
    seed: Annotated[int, typer.Option(min=0, help="Of the random signs and labels of a one-pass Fisher.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the posterior.  [default: the adapter's folder]")] = None,
    quiet: options.Quiet = False,
    json_log: options.JsonLog = False,
) -> None:
    """Fit a posterior to an adapter in one pass over its training data."""
    with session(quiet, json_log) as console:
        from laplace_lora import LaplaceConfig, commands

        # LaplaceConfig refuses what it does not know, in the same words as in Python.
        choices: dict[str, Any] = {"structure": structure, "fisher": fisher, "prior_groups": prior_groups}
        choices["predictive"] = predictive
        choices["rows_folder"], choices["rows_dtype"] = rows_folder, rows_dtype
        choices["target_modules"] = options.split_names(target_modules)
        choices["layers_to_transform"] = options.split_positions(layers_to_transform)
        laplace = LaplaceConfig(**choices, factor_rank=factor_rank, seed=seed)
        commands.fit(
            commands.FitConfig(
                source=_source(adapter, base, revision, dtype, device, quantization),
                data=options.source(data, "train", data_dir, prompts),
                validation=options.source(validation, None, data_dir, prompts),
                label_names=options.split_names(labels),
                template=template,
                chat=chat,
                max_length=max_length,
                batch_size=batch_size,
                prior=commands.PriorWish(_prior(prior), cast(Any, score), temperature, folds, prior_mean),
                laplace=laplace,
                out=out,
                readout=commands.ReadoutWish(readout, options.split_names(answers), normalise),
            ),
            console,
        )


def evaluate(
    adapter: options.Adapter,
    data: options.Data,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for metrics.json, predictions.jsonl, outputs.safetensors (of classes) and report.html."
        ),
    ],
    validation: Annotated[
        str | None,
        typer.Option(
            help="Held-out rows, labelled: adds temperature scaling, chosen on them. A file, or as TASK:train[80%:].",
            metavar="FILE|TASK:SPLIT",
        ),
    ] = None,
    ood: Annotated[
        list[str] | None,
        typer.Option(
            help="Data of another kind: how well is it told apart, and, where it is labelled, predicted? May be "
            "repeated.",
            metavar="FILE|TASK",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    posterior: options.Posterior = None,
    base: options.Base = None,
    revision: options.Revision = None,
    batch_size: options.BatchSize = 16,
    target_risk: Annotated[
        float | None,
        typer.Option(
            help="Share of wrong answers that is allowed: chooses a confidence above which to answer, with its bound, "
            "and saves it with the posterior, for predict to mark abstentions: 0.05.",
            metavar="SHARE",
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Probability with which a set of classes is to hold the right one: chooses what is in such sets "
            "(split conformal), and saves it with the posterior, for predict to name them: 0.9.",
            metavar="PROBABILITY",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Adapters drawn to average tokens' probabilities over; next-token.  [default: 8]"),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    quiet: options.Quiet = False,
    json_log: options.JsonLog = False,
) -> None:
    """Measure an adapter before and after its posterior, on data it was not trained on."""
    with session(quiet, json_log) as console:
        from laplace_lora import commands

        source = _source(adapter, base, revision, dtype, device, quantization)
        found = commands.evaluate(
            commands.EvaluateConfig(
                source,
                options.source(data, options.EVALUATION, data_dir),
                out,
                posterior,
                options.source(validation, None, data_dir),
                tuple(options.source(name, options.EVALUATION, data_dir) for name in ood or ()),
                batch_size,
                samples,
                target_risk,
                coverage,
            ),
            console,
        )
        if json_log:
            console.say("metrics", "metrics", **found.comparison.to_dict())
        elif not quiet:
            typer.echo(found.text)


def predict(
    adapter: options.Adapter,
    data: Annotated[
        str,
        typer.Option(
            help="JSONL or CSV file (labels not needed), a known task, or - for standard input.", metavar="FILE|TASK"
        ),
    ],
    out: Annotated[str, typer.Option(help="JSONL file to write, or - for standard output.", metavar="FILE")],
    data_dir: options.DataDir = None,
    posterior: options.Posterior = None,
    base: options.Base = None,
    revision: options.Revision = None,
    batch_size: options.BatchSize = 16,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Vary only the logits of the adapter's k likeliest classes: k-1 backward passes.  [default: all]",
            metavar="CLASSES",
        ),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    quiet: options.Quiet = False,
    json_log: options.JsonLog = False,
) -> None:
    """Write calibrated probabilities and uncertainties (in nats), one JSON object per row."""
    with session(quiet, json_log) as console:
        from laplace_lora import commands

        source = _source(adapter, base, revision, dtype, device, quantization)
        rows = data if data == "-" else options.source(data, options.EVALUATION, data_dir)
        commands.predict(commands.PredictConfig(source, rows, out, posterior, batch_size, top_k), console)


def info(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Folder or hub id of a posterior.")],
) -> None:
    """Say in words what a saved posterior holds. No model is loaded."""
    with session(quiet=False, json_log=False):
        from laplace_lora import commands

        typer.echo(commands.info(directory))


def _source(
    adapter: str, base: str | None, revision: str | None, dtype: str, device: str, quantization: str | None
) -> "AdapterSource":
    from laplace_lora.commands import AdapterSource

    return AdapterSource(adapter, base, revision, dtype, device, quantization)


def _prior(prior: str | None) -> str | float | None:
    try:
        return None if prior is None else float(prior)
    except ValueError:
        return prior
