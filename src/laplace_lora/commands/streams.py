"""Rows in and JSON lines out: a file, or standard input and output."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from laplace_lora.commands.output import check_writable, whole_file
from laplace_lora.data import RowSource, Source
from laplace_lora.errors import OutputError

#: Stands for standard input, or standard output.
STANDARD = "-"


def check_output(out: str, data: str | Source, what: str) -> None:
    """Refuse a file that cannot be written, or is the data themselves, before a model is loaded.

    Args:
        out: File to write, or ``-``.
        data: Where rows come from.
        what: What is written, for the message.

    Raises:
        OutputError: It cannot be written.
    """
    if out == STANDARD:
        return
    path = Path(out)
    check_writable(path.parent)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it, such as {path / f'{what}.jsonl'}.")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no ordinary file; name another, or write to standard output with --out -.")
    ours = isinstance(data, RowSource) or data == STANDARD
    if path.exists() and not ours and path.samefile(str(data)):
        raise OutputError(f"{path} is the data that is read; write the {what} to another file.")


@contextlib.contextmanager
def readable(data: str | Source) -> Iterator[tuple[Source, str]]:
    """Make rows readable more than once.

    Args:
        data: A file, a task's rows, or ``-``.

    Yields:
        The rows, and what messages call them.
    """
    if data != STANDARD:
        yield Path(data) if isinstance(data, str) else data, str(data)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard-input"
        with path.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield path, "standard input"


@contextlib.contextmanager
def written(out: str) -> Iterator[Path]:
    """Write a file that appears whole at the end, or goes to standard output as a whole.

    Args:
        out: The file, or ``-``.

    Yields:
        Where to write.
    """
    if out != STANDARD:
        with whole_file(Path(out)) as path:
            yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "standard-output"
        yield path
        sys.stdout.flush()
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.flush()
