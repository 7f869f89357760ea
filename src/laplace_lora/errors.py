"""Errors of the library. Every message ends with what the reader can do about it."""

import difflib
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """Cut another library's error down to what fits into one of our lines.

    Args:
        error: The error.

    Returns:
        Its first line, without the full stop, or its class if it says nothing.
    """
    return next(iter(str(error).splitlines()), type(error).__name__)[:300].rstrip(".:")


def advice_on(name: str, names: Iterable[str], advice: str) -> str:
    """Ask whether the nearest of some names was meant, before advice that holds in any case.

    Args:
        name: What was given.
        names: What there is.
        advice: Begins in lower case.

    Returns:
        The advice, and before it the question where a name is near.
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]}? {advice[:1].upper()}{advice[1:]}" if near else advice


def is_rust_panic(error: BaseException) -> bool:
    """Say whether an error is a panic of a library written in Rust, which is no ``Exception``.

    Args:
        error: The error.

    Returns:
        Whether it is.
    """
    return type(error).__name__ == "PanicException"


class LaplaceLoRAError(Exception):
    """Base class of all errors raised on purpose by laplace-lora."""


class UnsupportedAdapterError(LaplaceLoRAError):
    """A trained parameter, layer or adapter setting that the posterior cannot account for."""


class UnsupportedInputError(LaplaceLoRAError):
    """A batch that cannot be handled exactly: padding side, missing fields, wrong shapes."""


class NotFittedError(LaplaceLoRAError):
    """A posterior was asked for before ``fit`` (or before what the call needs was seen)."""


class MemoryLimitError(LaplaceLoRAError):
    """A posterior structure would need more bytes than the stated limit."""


class PosteriorFileError(LaplaceLoRAError):
    """Saved files that are damaged, of another version, or made for another model."""


class MissingExtraError(LaplaceLoRAError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class AdapterFileError(LaplaceLoRAError):
    """An adapter, base model or tokenizer that cannot be loaded, or that do not belong together."""


class DataFileError(LaplaceLoRAError):
    """A data file, or one of its rows (named by file and line), that cannot be used."""


class OutputError(LaplaceLoRAError):
    """A folder or file that cannot be written; nothing was left half-written."""
