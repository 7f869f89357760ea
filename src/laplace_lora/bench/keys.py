"""Keys by content: the same inputs have the same key on every machine, and any change of them another."""

import hashlib
import importlib.metadata
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from laplace_lora.data import Source, open_rows

#: Packages whose versions a result depends on.
PACKAGES = ("laplace-lora", "torch", "transformers", "peft", "numpy", "scipy")
_BLOCK = 2**20


def content_key(document: Any) -> str:
    """Return a name for everything that a result depends on.

    Args:
        document: JSON values.

    Returns:
        24 hexadecimal digits.
    """
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def versions() -> dict[str, str]:
    """Return the versions of what results depend on."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in PACKAGES}


def model_identity(name: str, revision: str | None) -> dict[str, Any]:
    """Say which base model is meant: a folder by its files' content, a repository by its id and revision.

    Args:
        name: Folder or hub id.
        revision: On the hub.

    Returns:
        JSON values.
    """
    if os.path.isdir(name):
        return {"folder": _folder_digest(str(Path(name).resolve()))}
    return {"hub": name, "revision": revision}


def rows_digest(source: Source) -> str:
    """Return the digest of all rows of a data set, as they are read.

    Args:
        source: The data set.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for row in open_rows(source):
        digest.update(json.dumps(dict(row.fields), sort_keys=True, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()


@lru_cache(maxsize=8)
def _folder_digest(folder: str) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(".")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
