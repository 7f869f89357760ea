"""What a saved posterior must hold, so that a file whose checksum was made to fit does no harm either."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig, TunedBy
from laplace_lora.errors import LaplaceLoRAError, PosteriorFileError
from laplace_lora.matrices import Groups, MatrixShape
from laplace_lora.posterior import Posterior

#: More points than that of the integral would be a slip, or meant to fill the memory.
MOST_POINTS = 2**20
_MOST = 2**48


def is_whole(value: Any, least: int = 0) -> bool:
    """Say whether a JSON value is an integer in a sensible range.

    Args:
        value: Any value.
        least: Its least value.

    Returns:
        Whether it is.
    """
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST


def is_number(value: Any) -> bool:
    """Say whether a JSON value is a finite number.

    Args:
        value: Any value.

    Returns:
        Whether it is.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def is_word(value: Any) -> bool:
    """Say whether a JSON value is a string that can be written as UTF-8.

    Args:
        value: Any value.

    Returns:
        Whether it is.
    """
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_list_of(check: Callable[[Any], bool], value: Any) -> bool:
    """Say whether a JSON value is a list of values of one kind.

    Args:
        check: Of one entry.
        value: Any value.

    Returns:
        Whether it is.
    """
    return isinstance(value, list) and all(check(item) for item in value)


def _is_record(kind: type, value: Any, **checks: Callable[[Any], bool]) -> bool:
    names = {field.name for field in dataclasses.fields(kind)}
    return isinstance(value, dict) and set(value) == names and all(check(value[key]) for key, check in checks.items())


def _is_matrix(value: Any) -> bool:
    def size(number: Any) -> bool:
        return is_whole(number, 1)

    return _is_record(
        MatrixShape,
        value,
        name=is_word,
        module=is_word,
        out_features=size,
        in_features=size,
        trained_in_full=lambda flag: isinstance(flag, bool),
    )


def _is_precision(value: Any) -> bool:
    if isinstance(value, dict):
        return all(is_word(key) and is_number(number) for key, number in value.items())
    return is_number(value)


def _is_rank(value: Any) -> bool:
    return value is None or is_whole(value, 1)


_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "library_version": is_word,
    "config": lambda value: isinstance(value, dict),
    "readout": is_word,
    "input_format": lambda value: isinstance(value, dict),
    "fingerprint": lambda value: isinstance(value, dict) and all(is_word(item) for item in value.values()),
    "matrices": lambda value: is_list_of(_is_matrix, value) and len({m["name"] for m in value}) == len(value) > 0,
    "held_at_map": lambda value: is_list_of(is_word, value),
    "prior_precision": lambda value: is_list_of(lambda number: is_number(number) and number > 0, value),
    "tuned_by": lambda value: value is None or value in get_args(TunedBy),
    "examples": lambda value: is_whole(value, 1),
    "classes": lambda value: is_whole(value, 1),
    "log_likelihood": lambda value: value is None or is_number(value),
    "accuracy": lambda value: value is None or (is_number(value) and 0 <= value <= 1),
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "readout_settings": lambda value: isinstance(value, dict) and all(is_word(key) for key in value),
    "noise_variance": lambda value: value is None or (is_number(value) and value > 0),
    "targets": lambda value: value is None or is_whole(value),
    "temperature": lambda value: is_number(value) and value > 0,
    "keeps_answers": lambda value: isinstance(value, bool),
    "squared_distances": lambda value: (
        value is None or is_list_of(lambda number: is_number(number) and number >= 0, value)
    ),
    "effective_parameters": lambda value: (
        value is None
        or (
            (isinstance(value, dict) and sorted(value) == ["with_tail", "without_tail"])
            and all(is_number(number) and number >= 0 for number in value.values())
        )
    ),
}
_SETTINGS: dict[type, Callable[[Any], bool]] = {bool: lambda value: isinstance(value, bool), int: is_whole}


def check_description(document: Mapping[str, Any]) -> None:
    """Check the kinds of all entries.

    Args:
        document: What posterior_config.json holds.

    Raises:
        PosteriorFileError: An entry is missing or malformed; says which.
    """
    wrong = [name for name, check in _ENTRIES.items() if name not in document or not check(document[name])]
    wrong += [name for name, check in _OPTIONAL.items() if name in document and not check(document[name])]
    if wrong:
        raise PosteriorFileError(_malformed(", ".join(wrong)))


def checked_config(values: Mapping[str, Any]) -> LaplaceConfig:
    """Rebuild the settings of a posterior.

    Args:
        values: The entry ``config``.

    Returns:
        The settings.

    Raises:
        PosteriorFileError: One is missing, unknown, of another kind, or out of range.
    """
    for field in dataclasses.fields(LaplaceConfig):
        value = values.get(field.name, field.default)
        check = _SETTINGS.get(type(field.default), lambda item: isinstance(item, str))
        if field.name in ("prior_precision", "noise_variance"):
            check = _is_precision
        if field.name == "factor_rank":
            check = _is_rank
        if field.name in ("target_modules", "layers_to_transform"):
            continue  # from_dict says what is wrong with them
        if field.name == "rows_folder":  # of the machine that fitted: not saved
            if value is not None:
                raise PosteriorFileError(_malformed("config.rows_folder"))
            continue
        if not check(value) or (field.name == "integration_points" and value > MOST_POINTS):
            raise PosteriorFileError(_malformed(f"config.{field.name}"))
    try:
        return LaplaceConfig.from_dict(values)
    except (LaplaceLoRAError, TypeError, ValueError) as error:
        raise PosteriorFileError(f"posterior_config.json, entry 'config': {error}") from error


def check_groups(config: LaplaceConfig, matrices: Sequence[MatrixShape], values: Sequence[float], entry: str) -> None:
    """Compare the number of an entry's values with that of the prior's groups.

    Args:
        config: Settings of the posterior.
        matrices: Its weight matrices.
        values: One per group.
        entry: Its name.

    Raises:
        PosteriorFileError: They differ.
    """
    if len(Groups.of(matrices, config.prior_groups).names) != len(values):
        raise PosteriorFileError(_malformed(entry))


def check_tensors(
    kind: type[Posterior],
    matrices: Sequence[MatrixShape],
    tensors: Mapping[str, Tensor],
    where: str,
) -> None:
    """Compare a posterior's tensors with its matrices: names, shapes and values.

    Args:
        kind: The posterior's class, which says what it stores.
        matrices: Its weight matrices.
        tensors: What posterior.safetensors holds, without the training inputs.
        where: Path of the file, for messages.

    Raises:
        PosteriorFileError: They differ, or a value is NaN, infinite or negative where it must not be.
    """
    wanted = kind.stored(matrices, tensors)
    for name in sorted(set(wanted) ^ set(tensors)):
        verb = "lacks" if name in wanted else "has no place for"
        raise PosteriorFileError(f"{where} {verb} {name}; fit and save the posterior again.")
    for name, tensor in tensors.items():
        problem = _problem(tensor, wanted[name], spectrum=name.endswith(kind.spectra))
        if problem:
            raise PosteriorFileError(f"{where}: {name} {problem}; fit and save the posterior again.")


def _problem(tensor: Tensor, shape: tuple[int, ...], *, spectrum: bool) -> str | None:
    if tuple(tensor.shape) != shape:
        return f"has shape {tuple(tensor.shape)} instead of {shape}"
    if not tensor.is_floating_point() or (spectrum and tensor.dtype != torch.float64):
        return f"is of dtype {tensor.dtype}"
    # Squares and products of what is stored are formed; they must be finite, too. Part by part: what is compared takes
    # as much memory again. NaN is no number below anything.
    parts = tensor.flatten().split(1 << 22)
    if not all(bool((part.abs() <= min(1e140, torch.finfo(part.dtype).max)).all()) for part in parts):
        return "holds NaN, infinite or impossibly large values"
    if spectrum and bool((tensor < 0).any()):
        return "holds negative values"
    return None


def _malformed(what: str) -> str:
    return f"posterior_config.json lacks or malforms an entry ({what}); fit and save the posterior again."
