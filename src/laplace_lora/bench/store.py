"""A cache of folders by content key. An entry is there whole or not at all, whenever the process is killed."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from laplace_lora.bench.keys import content_key
from laplace_lora.commands.output import check_writable
from laplace_lora.errors import OutputError

#: What an entry was made from, and what is known of it.
ENTRY_NAME = "entry.json"
_PARTIAL = ".partial-"


def _host() -> str:
    """Return a name for this machine without dashes."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


class Store:
    """Entries of several kinds under one folder: ``KIND/KEY/``."""

    def __init__(self, root: Path) -> None:
        """Open a store, and remove what killed processes have left half-made.

        Args:
            root: Its folder; made if missing.
        """
        check_writable(root)
        self.root = root
        for left in root.glob(f"*/{_PARTIAL}*"):
            if not _in_use(left):
                shutil.rmtree(left, ignore_errors=True)

    def find(self, kind: str, document: Any) -> Path | None:
        """Look for an entry.

        Args:
            kind: Of what.
            document: What it is made from, JSON values.

        Returns:
            Its folder, or None.
        """
        folder = self.root / kind / content_key(document)
        return folder if folder.is_dir() else None

    @contextlib.contextmanager
    def made(self, kind: str, document: Any, about: dict[str, Any]) -> Iterator[Path]:
        """Make an entry: it appears when the block has ended without an error.

        Args:
            kind: Of what.
            document: What it is made from, JSON values.
            about: What is to be known of it; may be filled in the block.

        Yields:
            Where to write; a folder that is renamed at the end.

        Raises:
            OutputError: It cannot be written.
        """
        folder = self.root / kind / content_key(document)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{os.getpid()}-{_host()}-", dir=folder.parent))
        except OSError as error:
            raise OutputError(f"{folder} cannot be made ({error.strerror}); give another --cache.") from error
        try:
            yield staged
            entry = {"made_from": document, **about}
            (staged / ENTRY_NAME).write_text(json.dumps(entry, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            with contextlib.suppress(OSError):  # another process was quicker, with the same
                os.rename(staged, folder)
            if not folder.is_dir():
                raise OutputError(f"{folder} cannot be written; give another --cache.")
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    @staticmethod
    def entry(folder: Path) -> dict[str, Any]:
        """Read what is known of an entry.

        Args:
            folder: From :meth:`find`.

        Returns:
            What :meth:`made` was told.
        """
        found: dict[str, Any] = json.loads((folder / ENTRY_NAME).read_text(encoding="utf-8"))
        return found


def _in_use(folder: Path) -> bool:
    """Say whether the process that makes a folder may still be running, here or on another machine."""
    process, *rest = folder.name.removeprefix(_PARTIAL).split("-")
    if len(rest) > 1 and rest[0] != _host():
        return True  # of another machine nothing is known
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
