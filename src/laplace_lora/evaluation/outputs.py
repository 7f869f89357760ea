"""What a model gives, typed by what it holds: logits or probabilities. Only logits have a softmax.

Published calibration figures of Laplace-LoRA appear to have been soft-maxed twice, because an array called "logits"
held probabilities. Here the two are different types. :meth:`Logits.softmax` is the only softmax of the evaluation,
whatever needs logits takes :class:`Logits` alone, and whatever scores refuses them. Neither type turns into an array
by itself, so that no other library's softmax can take one unseen: ``values`` has to be asked for.
"""

import dataclasses
import math
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laplace_lora.errors import LaplaceLoRAError

FloatArray = NDArray[np.float64]

# Rows of float32 soft-max outputs sum to one within a few 1e-7; half-precision ones within 1e-3.
_SUM_TOLERANCE = 2e-3


class WrongKindError(LaplaceLoRAError, TypeError):
    """Logits were given where probabilities are wanted, or probabilities where logits are."""


@dataclasses.dataclass(frozen=True, eq=False)
class Probabilities:
    """Probabilities of N examples and K classes, checked once. They have no softmax.

    Attributes:
        values: (N, K) float64, rows that sum to one; 0 for options that an example lacks. A read-only copy.
    """

    values: FloatArray

    def __post_init__(self) -> None:
        """Refuse what cannot be probabilities."""
        object.__setattr__(self, "values", _frozen(check_probabilities(self.values)))

    def __len__(self) -> int:
        """Return N."""
        return len(self.values)

    def widened(self, classes: int) -> "Probabilities":
        """Add options that no example has.

        Args:
            classes: Their new number, K or more.

        Returns:
            (N, classes) the same, with probability 0 for what is new.
        """
        return Probabilities(np.pad(self.values, ((0, 0), (0, classes - self.values.shape[1]))))


@dataclasses.dataclass(frozen=True, eq=False)
class Logits:
    """Logits of N examples and K classes.

    Attributes:
        values: (N, K) float64, unnormalised; -inf for options that an example lacks. A read-only copy.
    """

    values: FloatArray

    def __post_init__(self) -> None:
        """Refuse what cannot be logits.

        Raises:
            WrongKindError: These are probabilities, by their type or by their values.
            LaplaceLoRAError: Not a matrix of N > 0 rows, a NaN or +inf, or a row without any option.
        """
        if isinstance(self.values, Probabilities | Logits):
            raise WrongKindError(f"Logits(...) was given {type(self.values).__name__}; give the array of raw logits.")
        values = np.asarray(self.values, dtype=np.float64)
        if values.ndim != 2 or values.size == 0:
            raise LaplaceLoRAError(f"logits have shape {values.shape}; give a non-empty matrix, one row per example.")
        if np.isnan(values).any() or np.isposinf(values).any() or np.isneginf(values).all(axis=1).any():
            raise LaplaceLoRAError("logits are NaN or infinite; give finite ones, and -inf for absent options only.")
        # Real logits are non-negative and sum to one in every row only by a freak: one column has no other choice.
        if values.shape[1] > 1 and _are_distributions(values).all():
            raise WrongKindError(
                "every row of these logits is a probability distribution already; give raw logits, or Probabilities."
            )
        object.__setattr__(self, "values", _frozen(values))

    def __len__(self) -> int:
        """Return N."""
        return len(self.values)

    def softmax(self, temperature: float = 1.0) -> Probabilities:
        """Divide by a temperature and turn logits into probabilities. The only softmax of the evaluation.

        Args:
            temperature: Above 1 for less confidence.

        Returns:
            (N, K) probabilities.

        Raises:
            LaplaceLoRAError: The temperature is no positive number.
        """
        if not (math.isfinite(temperature) and temperature > 0.0):
            raise LaplaceLoRAError(f"the temperature is {temperature}; give a positive number.")
        powers = np.exp((self.values - self.values.max(axis=1, keepdims=True)) / temperature)
        return Probabilities(powers / powers.sum(axis=1, keepdims=True))


#: What functions that score take: probabilities, or a bare array that has to pass the check for them.
ProbabilitiesLike: TypeAlias = Probabilities | ArrayLike


def require_logits(logits: Logits, user: str) -> FloatArray:
    """Return the array of logits, or refuse what is not said to be logits.

    Args:
        logits: What was given.
        user: Who needs logits, for the error.

    Returns:
        (N, K) float64.

    Raises:
        WrongKindError: Probabilities, or anything else that is no :class:`Logits`.
    """
    if isinstance(logits, Probabilities):
        raise WrongKindError(
            f"{user} takes Logits, and was given Probabilities, which are normalised already; use them."
        )
    if not isinstance(logits, Logits):
        raise WrongKindError(
            f"{user} takes Logits, and was given a bare {type(logits).__name__}; if these are logits, pass Logits(...)."
        )
    return logits.values


def check_probabilities(probabilities: ProbabilitiesLike, name: str = "probabilities") -> FloatArray:
    """Return probabilities as float64, or refuse what cannot be probabilities.

    Args:
        probabilities: (N, K) probabilities, typed or bare.
        name: What the error calls them.

    Returns:
        (N, K) float64, unchanged in value.

    Raises:
        WrongKindError: These are logits.
        LaplaceLoRAError: Not a matrix of N > 0 rows; an entry is negative or not finite; a row does not sum to one.
    """
    if isinstance(probabilities, Probabilities):
        return probabilities.values
    if isinstance(probabilities, Logits):
        raise WrongKindError(f"{name} are Logits, where probabilities are wanted; pass logits.softmax().")
    values = np.asarray(probabilities, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise LaplaceLoRAError(f"{name} has shape {values.shape}; give a non-empty matrix, one row per example.")
    good = _are_distributions(values)
    if not good.all():
        row = int(np.argmin(good))
        raise LaplaceLoRAError(
            f"row {row} of {name}, {values[row].tolist()}, is no probability distribution; "
            "if the array holds logits, pass Logits(array).softmax()."
        )
    return values


def _are_distributions(values: FloatArray) -> NDArray[np.bool_]:
    """Say of each row whether it is a probability distribution."""
    good = np.isfinite(values).all(axis=1) & (values >= 0.0).all(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(good & (np.abs(values.sum(axis=1) - 1.0) <= _SUM_TOLERANCE))


def _frozen(values: FloatArray) -> FloatArray:
    """Copy an array so that nobody changes what was checked."""
    copy = values.copy()
    copy.setflags(write=False)
    return copy
