"""``laplace-lora tasks``: the table of known tasks, and examples of one as a model sees them."""

from typing import Annotated

import typer

from laplace_lora.cli import options
from laplace_lora.cli.session import session

tasks_app = typer.Typer(
    help="List the known tasks, or show one: tasks show NAME.",
    invoke_without_command=True,
    no_args_is_help=False,
    rich_markup_mode=None,
)


@tasks_app.callback()
def tasks(context: typer.Context) -> None:
    """List the known tasks with their splits, sizes and licences; `tasks show NAME` shows examples of one."""
    if context.invoked_subcommand is not None:
        return
    from laplace_lora.tasks.listing import task_table  # without torch

    typer.echo(task_table())


@tasks_app.command()
def show(
    name: Annotated[str, typer.Argument(help="Task, perhaps with a split: openbookqa:train.", metavar="NAME")],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a tokenizer, for token ids and answer tokens.", metavar="DIR"),
    ] = None,
    data_dir: options.DataDir = None,
    readout: Annotated[
        str | None,
        typer.Option(
            help="answers, options or class.  [default: answers; with an encoder's tokenizer options or class, as the "
            "task has choices or classes]",
            metavar="NAME",
        ),
    ] = None,
    answers: options.Answers = None,
    prompts: options.Prompts = None,
    template: options.Template = None,
    chat: options.Chat = False,
    max_length: options.MaxLength = None,
    rows: Annotated[int, typer.Option(min=1, help="Examples to show.")] = 2,
) -> None:
    """Show where a task is from and examples of it as a model sees them, with token ids and answer tokens."""
    with session(quiet=False, json_log=False):
        from laplace_lora.commands.tasks import ShowConfig, show_task

        source = options.source(name, options.EVALUATION, data_dir, prompts)
        words = options.split_names(answers)
        typer.echo(show_task(ShowConfig(source, tokenizer, readout, words, template, chat, max_length, rows)))
