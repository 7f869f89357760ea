"""The command line: ``laplace-lora VERB``."""

import sys

import typer

from laplace_lora.cli import verbs
from laplace_lora.cli.acquire import acquire
from laplace_lora.cli.bench import bench
from laplace_lora.cli.demo import demo
from laplace_lora.cli.tasks import tasks_app
from laplace_lora.cli.train import train
from laplace_lora.errors import LaplaceLoRAError

app = typer.Typer(
    name="laplace-lora",
    help="Calibrated uncertainty for LoRA-tuned language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _verbs() -> None:
    """Calibrated uncertainty for LoRA-tuned language models."""


for _verb in (demo, train, verbs.fit, verbs.evaluate, verbs.predict, acquire, bench, verbs.info):
    app.command()(_verb)
app.add_typer(tasks_app, name="tasks")


def main() -> None:
    """Run the command line; a foreseen error is one line on standard error and exit status 1."""
    try:
        status = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except LaplaceLoRAError as error:
        typer.echo(f"laplace-lora: {error}", err=True)
        raise SystemExit(1) from None
    except Exception as error:
        # The command-line library's own usage errors, which it would print in several lines.
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        verb = getattr(getattr(error, "ctx", None), "command_path", "laplace-lora")
        typer.echo(f"laplace-lora: {' '.join(explain().split())} See {verb} --help.", err=True)
        raise SystemExit(2) from None
    raise SystemExit(status if isinstance(status, int) else 0)
