"""Keys by content: the same inputs have the same key on every machine, and any change of them another."""

import hashlib
import importlib.metadata
import json
import os
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME
from transformers.utils.hub import cached_file, extract_commit_hash

from laplace_lora.commands.inputs import chosen_device
from laplace_lora.data import Source, open_rows
from laplace_lora.errors import LaplaceLoRAError, first_line

#: Packages whose versions a result depends on.
PACKAGES = ("laplace-lora", "torch", "transformers", "peft", "accelerate", "numpy", "scipy")
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


@cache
def versions() -> dict[str, str]:
    """Return the versions of what results depend on; read once, as every key has them."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in PACKAGES}


def device_identity(device: str) -> dict[str, str]:
    """Say what kind of device is meant: what draws and sums on a GPU differs from what does on the CPU.

    Args:
        device: As for every verb.

    Returns:
        Its kind; nothing for the CPU, whose keys do not name it.
    """
    kind = chosen_device(device).type
    return {} if kind == "cpu" else {"device": kind}


def model_identity(name: str, revision: str | None) -> dict[str, Any]:
    """Say which base model is meant: a folder by its files' content, a repository by its id and commit.

    Args:
        name: Folder or hub id.
        revision: On the hub.

    Returns:
        JSON values.

    Raises:
        LaplaceLoRAError: It is neither.
    """
    if os.path.isdir(name):
        return {"folder": _folder_digest(str(Path(name).resolve()))}
    try:
        config = cached_file(name, CONFIG_NAME, revision=revision)
    except (OSError, ValueError) as error:
        raise LaplaceLoRAError(
            f"--base {name} cannot be read ({first_line(error)}); give a folder with a model, or a hub id."
        ) from None
    # A branch moves on; the commit that it stands for now does not.
    return {"hub": name, "commit": extract_commit_hash(config, None)}


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
    for path in sorted(Path(folder).rglob("*")):
        inside = path.relative_to(folder)
        # Hidden files and folders hold what downloads and versioning leave, dates among it.
        if not path.is_file() or any(part.startswith(".") for part in inside.parts):
            continue
        digest.update(str(inside).encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
