"""Files and folders that appear whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from laplace_lora.errors import OutputError


def check_writable(folder: Path) -> None:
    """Refuse early a folder in which nothing can be written. A folder that is missing is not made.

    Args:
        folder: The folder.

    Raises:
        OutputError: It, or the folder it would be made in, cannot be written.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"{existing} is not a folder; give another place for the output.")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(
            f"{existing} cannot be written ({error.strerror or error}); give another place for the output."
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name beside its own; rename it at the end, remove it on failure.

    Args:
        path: The file. One that is there is replaced at the end.

    Yields:
        Where to write.
    """
    with _reported(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
        os.close(handle)
        staged = Path(name)
        try:
            yield staged
            staged.chmod(0o644)
            _sync(staged)
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Write files into a temporary folder; move them into their own at the end, remove them on failure.

    Args:
        folder: The folder; made if missing. Files of the same names are replaced, others left alone.

    Yields:
        Where to write.
    """
    with _reported(folder):
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        try:
            yield staged
            entries = sorted(staged.iterdir())
            for entry in entries:
                if entry.is_file():
                    _sync(entry)
            for entry in entries:
                target = folder / entry.name
                if target.is_dir():
                    shutil.rmtree(target)
                os.replace(entry, target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            for parent in made:
                # Those that stayed empty were made for nothing.
                if parent.exists() and not any(parent.iterdir()):
                    parent.rmdir()


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); nothing was left there. Free space or give "
            "another place."
        ) from error


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
