"""Files and folders that appear whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from laplace_lora.errors import OutputError


def check_writable(folder: Path) -> None:
    """Refuse early a folder in which nothing can be written. A folder that is missing is not made.

    Args:
        folder: The folder.

    Raises:
        OutputError: It, or the folder it would be made in, cannot be written.
    """
    existing = folder
    # os.path, since Path.exists raises on names that are too long
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"{existing} is not a folder; give another place for the output.")
    try:
        os.lstat(folder)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise OutputError(f"{folder} cannot be made ({error.strerror or error}); give another place.") from error
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
    path = path.resolve()  # a link stays one, and what it points to is replaced
    with _reported(path), _made(path.parent):
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:64]}-", suffix=".tmp", dir=path.parent)
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
    with _reported(folder), _made(folder):
        staged = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        try:
            yield staged
            entries = sorted(staged.iterdir())
            for entry in entries:
                if entry.is_file():
                    _sync(entry)
            _move_all(entries, folder, Path(tempfile.mkdtemp(dir=staged)))
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _move_all(entries: list[Path], folder: Path, aside: Path) -> None:
    """Move files and folders into place, or put back what was there."""
    targets = [folder / entry.name for entry in entries]
    for entry, target in zip(entries, targets, strict=True):
        if target.exists() and (target.is_dir() or entry.is_dir()):
            raise OutputError(f"{target} is in the way; remove it or give another place for the output.")
    try:
        for entry, target in zip(entries, targets, strict=True):
            if target.exists():
                os.replace(target, aside / target.name)
            os.replace(entry, target)
    except BaseException:
        for entry, target in zip(entries, targets, strict=True):
            if not entry.exists():
                os.replace(target, entry)
            if (aside / target.name).exists():
                os.replace(aside / target.name, target)
        raise


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder with its parents, and remove those that stayed empty."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for parent in missing:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own class
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path} cannot be written ({reason}); nothing was left there. Free space or give another place."
        ) from error


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
