"""Settings that several verbs share."""

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class AdapterSource:
    """Where an adapter comes from and where it runs.

    Attributes:
        adapter: Folder or hub id of the adapter.
        base: Folder or hub id of its base model; from adapter_config.json if None.
        revision: Revision of the base on the hub; from adapter_config.json if None.
        dtype: dtype of the base: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, or ``auto``: a GPU if there is one.
    """

    adapter: str
    base: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"


def plain(config: Any) -> dict[str, Any]:
    """Return settings as JSON values.

    Args:
        config: A dataclass.

    Returns:
        One entry per field; paths as text.
    """
    return {key: _plain(value) for key, value in dataclasses.asdict(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
