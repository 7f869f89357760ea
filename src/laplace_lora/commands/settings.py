"""Settings that several verbs share."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from laplace_lora.data import RowSource


@dataclasses.dataclass(frozen=True)
class AdapterSource:
    """Where an adapter comes from and where it runs.

    Attributes:
        adapter: Folder or hub id of the adapter.
        base: Folder or hub id of its base model; from adapter_config.json if None.
        revision: Revision of the base on the hub; from adapter_config.json if None.
        dtype: dtype of the base: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        quantization: How to quantise the base as it is loaded: ``nf4``, ``nf4-double``, ``int8``, ``torchao-int8``,
            or None.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: a GPU if there is one.
    """

    adapter: str
    base: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    quantization: str | None = None


def local_or_hub(source: str) -> str | Path:
    """Tell a folder from a repository of the same name.

    Args:
        source: Folder or hub id.

    Returns:
        A path if there is something, else the hub id.
    """
    return Path(source) if os.path.exists(source) else source  # Path.exists raises on names that are too long


def plain(config: Any) -> dict[str, Any]:
    """Return settings as JSON values.

    Args:
        config: A dataclass.

    Returns:
        One entry per field; files and other data by their names.
    """
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, RowSource):
        return str(value)
    if dataclasses.is_dataclass(value):
        return plain(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
