"""``laplace-lora demo``."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from laplace_lora.cli.session import session


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report and the figures.")] = Path("laplace-lora-demo"),
    seeds: Annotated[int, typer.Option(min=1, max=5, help="How many of the five fixed seeds to run.")] = 1,
    small: Annotated[bool, typer.Option("--small", help="Reduced size, to see that everything runs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Tune a real encoder until it is over-confident, then calibrate it with a Laplace posterior.

    Runs offline in under 2 minutes per seed on two cores. Writes report.html, picture.png, metrics.json and
    predictions.jsonl (one folder per seed with --seeds above 1, and results.json for all of them).
    """
    with session(quiet, json_log=False):
        # Imported here: --help must not wait for torch.
        from laplace_lora.demo import DemoConfig, run_seed, seeds_table, small_config, write_results
        from laplace_lora.evaluation import terminal_table, verdict

        config = small_config() if small else DemoConfig()
        command = " ".join(["laplace-lora", *sys.argv[1:]])
        results = []
        for seed in range(seeds):
            folder = out if seeds == 1 else out / f"seed-{seed}"
            results.append(run_seed(config, seed, folder, command=command, progress=not quiet))
            typer.echo(f"\nSeed {seed}: {verdict(results[-1].comparison)}\n")
            typer.echo(terminal_table(results[-1].comparison))
            typer.echo(f"\nreport: {folder / 'report.html'}")
        if seeds > 1:
            typer.echo("\n" + seeds_table(results))
            write_results(out / "results.json", config, results, command)
            typer.echo(f"\nfigures: {out / 'results.json'}")
