"""``laplace-lora acquire``: options in, settings out."""

from typing import Annotated

import typer

from laplace_lora.cli import options
from laplace_lora.cli.session import session

# Everything heavy is imported inside the verb: --help must not wait for torch.


def acquire(
    adapter: options.Adapter,
    data: Annotated[
        str,
        typer.Option(
            help="The pool: JSONL or CSV file (labels are not read), a known task, or - for standard input.",
            metavar="FILE|TASK",
        ),
    ],
    out: Annotated[str, typer.Option(help="JSONL file to write, or - for standard output.", metavar="FILE")],
    method: Annotated[
        str,
        typer.Option(
            help="Score: batch_bald (what the labels of a whole batch tell of the weights together), bald (what each "
            "label tells by itself) or entropy (how uncertain each label is). In nats.",
            metavar="NAME",
        ),
    ] = "batch_bald",
    top: Annotated[
        int | None,
        typer.Option(min=1, help="Rows to write, the best ones.  [default: all; 25 with batch_bald]", metavar="ROWS"),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows that batch_bald chooses among, the best by bald; their Jacobians are held in memory.  "
            "[default: 300]",
            metavar="ROWS",
        ),
    ] = None,
    data_dir: options.DataDir = None,
    posterior: options.Posterior = None,
    base: options.Base = None,
    revision: options.Revision = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quantization: options.Quantization = None,
    quiet: options.Quiet = False,
    json_log: options.JsonLog = False,
) -> None:
    """Rank unlabelled rows by what their labels would tell (in nats), one JSON object per row, the best first."""
    with session(quiet, json_log) as console:
        from laplace_lora import commands

        source = commands.AdapterSource(adapter, base, revision, dtype, device, quantization)
        rows = data if data == "-" else options.source(data, options.EVALUATION, data_dir)
        commands.acquire(
            commands.AcquireConfig(source, rows, out, method, top, candidates, posterior, batch_size), console
        )
