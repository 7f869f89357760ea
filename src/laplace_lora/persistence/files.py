"""Posterior files: posterior_config.json and posterior.safetensors, written whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from laplace_lora.errors import OutputError, PosteriorFileError
from laplace_lora.persistence.mapped import mapped_tensors

FORMAT_VERSION = 1
CONFIG_NAME = "posterior_config.json"
TENSORS_NAME = "posterior.safetensors"


def write_posterior(directory: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files, or leave the directory as it was.

    The tensors are renamed into place first and the description, which holds their digest, last. If the
    second rename fails, the first is undone; a power cut in between is noticed by :func:`read_tensors`.

    Args:
        directory: Where to; made if missing. Other files in it are not touched.
        description: JSON values.
        tensors: The state.

    Raises:
        OutputError: The directory cannot be written, or is full; it is as it was.
    """
    missing = [folder for folder in (directory, *directory.parents) if not os.path.exists(folder)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write_both(directory, description, tensors)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk in its own class
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{directory} cannot be written ({reason}); nothing was left there. Free space or give another place."
        ) from error
    finally:
        for folder in missing:
            # Those that stayed empty were made for nothing.
            if os.path.isdir(folder) and not any(folder.iterdir()):
                folder.rmdir()


def _write_both(directory: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    staged: list[Path] = []
    try:
        tensors_path = _stage(directory, staged, lambda path: save_file(contiguous, path, metadata={"format": "pt"}))
        document: dict[str, Any] = {"format_version": FORMAT_VERSION, **description}
        document["tensors_sha256"] = file_digest(tensors_path)
        document["config_sha256"] = _document_digest(document)
        text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"
        config_path = _stage(directory, staged, lambda path: path.write_text(text, encoding="utf-8"))
        _replace_both(directory, tensors_path, config_path, staged)
    finally:
        for path in staged:
            path.unlink(missing_ok=True)


def read_description(directory: Path) -> dict[str, Any]:
    """Read and check posterior_config.json.

    Args:
        directory: Where the files are.

    Returns:
        The description.

    Raises:
        PosteriorFileError: It is missing, damaged, or of another version.
    """
    path = directory / CONFIG_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PosteriorFileError(f"{path} does not exist; fit a posterior and save_pretrained it there.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise PosteriorFileError(f"{path} cannot be read ({error}); fit and save the posterior again.") from error
    if not isinstance(document, dict):
        raise PosteriorFileError(f"{path} holds no JSON object; fit and save the posterior again.")
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise PosteriorFileError(
            f"{path} has format version {str(version)[:40]}, this laplace-lora reads {FORMAT_VERSION}; install the "
            "version that wrote it, or fit and save again."
        )
    stated = document.pop("config_sha256", None)
    if stated is None or stated != _checked_digest(document):
        raise PosteriorFileError(f"{path} does not match its own checksum; fit and save the posterior again.")
    return document


def tensors_bytes(directory: Path) -> int:
    """Return the size of posterior.safetensors, 0 if there is none.

    Args:
        directory: Where the files are.
    """
    path = directory / TENSORS_NAME
    return path.stat().st_size if path.is_file() else 0


def read_tensors(directory: Path, description: Mapping[str, Any], mapped: bool = False) -> dict[str, Tensor]:
    """Read and check posterior.safetensors.

    Args:
        directory: Where the files are.
        description: What :func:`read_description` returned.
        mapped: Whether tensors are to stay in the file, mapped into memory and not to be written to.

    Returns:
        The state, on the CPU.

    Raises:
        PosteriorFileError: It is missing or does not match the description's checksum.
    """
    path = directory / TENSORS_NAME
    try:
        if file_digest(path) != description.get("tensors_sha256"):
            raise PosteriorFileError(
                f"{path} does not match the checksum in {CONFIG_NAME}: one of the two is damaged or comes from another "
                "fit; fit and save the posterior again."
            )
        if mapped:
            return mapped_tensors(path)
        # Copies: aligned like computed tensors, so that results agree to the last bit, and free of the file.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise PosteriorFileError(f"{path} cannot be read ({error}); fit and save the posterior again.") from error


def _stage(directory: Path, staged: list[Path], write: Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name in its final directory, down to the disk."""
    handle, name = tempfile.mkstemp(prefix=".posterior-", suffix=".tmp", dir=directory)
    os.close(handle)
    path = Path(name)
    staged.append(path)
    write(path)
    path.chmod(0o644)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return path


def _replace_both(directory: Path, tensors_path: Path, config_path: Path, staged: list[Path]) -> None:
    """Rename both staged files into place, or put back what was there."""
    target = directory / TENSORS_NAME
    previous = None
    if target.exists():
        previous = _stage(directory, staged, lambda path: shutil.copyfile(target, path))
    os.replace(tensors_path, target)
    try:
        os.replace(config_path, directory / CONFIG_NAME)
    except BaseException:
        if previous is None:
            target.unlink(missing_ok=True)
        else:
            os.replace(previous, target)
        raise
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        Hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_digest(document: Mapping[str, Any]) -> str | None:
    """Return the digest of a document that was read, or None if it cannot be one that was written."""
    try:
        return _document_digest(document)
    except (ValueError, RecursionError):  # NaN, or nested beyond reason
        return None


def _document_digest(document: Mapping[str, Any]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
