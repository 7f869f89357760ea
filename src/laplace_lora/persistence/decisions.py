"""decisions.json: rules for acting on a posterior's confidence, beside the posterior that they were chosen with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laplace_lora.errors import PosteriorFileError
from laplace_lora.persistence.files import CONFIG_NAME, file_digest
from laplace_lora.persistence.hub import DECISIONS_NAME

_THRESHOLDS = {"abstention": "threshold", "sets": "least_probability"}


def decisions_document(directory: Path, rules: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what decisions.json is to hold.

    Args:
        directory: Where the posterior is.
        rules: ``abstention`` with its ``threshold``, ``sets`` with their ``least_probability``: JSON values.

    Returns:
        The rules, and the digest of the posterior that they are of.
    """
    return {"posterior_sha256": file_digest(directory / CONFIG_NAME), **rules}


def read_decisions(directory: Path) -> dict[str, Any] | None:
    """Read decisions.json.

    Args:
        directory: Where the posterior is.

    Returns:
        The rules; None where there is no file, or that of a posterior which has been fitted anew since.

    Raises:
        PosteriorFileError: The file is damaged.
    """
    path = directory / DECISIONS_NAME
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        stated = document["posterior_sha256"]
        rules = {
            name: float(document[name][key]) for name, key in _THRESHOLDS.items() if _is_given(document, name, key)
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PosteriorFileError(
            f"{path} cannot be read ({error}); remove it, or write it again: evaluate --target-risk."
        ) from error
    if not all(0.0 <= value <= 1.0 for value in rules.values()):
        raise PosteriorFileError(
            f"{path} holds a threshold that is no probability; remove it, or write it again: evaluate --target-risk."
        )
    for name in rules:
        document[name][_THRESHOLDS[name]] = rules[name]
    return document if stated == file_digest(directory / CONFIG_NAME) else None


def _is_given(document: Mapping[str, Any], name: str, key: str) -> bool:
    return document.get(name) is not None and document[name][key] is not None
