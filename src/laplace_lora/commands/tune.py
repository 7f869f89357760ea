"""How ``fit`` chooses the prior: what was asked for, whether it can be done, and the doing."""

import dataclasses
import math
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from laplace_lora.commands.console import Console
from laplace_lora.config import Score
from laplace_lora.data import Source
from laplace_lora.errors import AdapterFileError, LaplaceLoRAError, first_line
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.persistence import STARTING_POINT_NAME
from laplace_lora.prior import SCORES

METHODS = ("auto", "evidence", "validation", "cross_fit")
MEANS = ("start", "zero")


@dataclasses.dataclass(frozen=True)
class PriorWish:
    """How the prior is to be chosen.

    Attributes:
        method: ``auto``, ``evidence``, ``validation``, ``cross_fit``, a positive number (in 1 / weight^2), or None:
            ``validation`` where there is validation data, else ``auto``.
        score: What held-out rows are scored by: ``nll``, ``brier`` or ``ece``; ``nll`` if None.
        temperature: Whether held-out rows choose a temperature too.
        folds: Of ``cross_fit``; 3 if None.
        mean: Mean of the prior in ``auto`` and ``evidence``: ``start``, the adapter before its training, or ``zero``;
            if None, the start where ``train`` has left it.
    """

    method: str | float | None = None
    score: Score | None = None
    temperature: bool = True
    folds: int | None = None
    mean: str | None = None

    def settled(self, validation: Source | None) -> "PriorWish":
        """Say what is meant where nothing is said, and refuse what does not go together.

        Args:
            validation: Held-out rows; None for none.

        Returns:
            The wish, with its method.

        Raises:
            LaplaceLoRAError: The method is not known, lacks its rows, or an option is not one of its own.
        """
        method = self.method
        if method is None:
            method = "validation" if validation is not None else "auto"
        if isinstance(method, str):
            method = method.replace("-", "_")
        if isinstance(method, str) and method not in METHODS:
            raise LaplaceLoRAError(
                f"prior {self.method!r} is not known; choose auto, evidence, validation, cross-fit or a positive "
                "number."
            )
        if not isinstance(method, str) and not 0.0 < method < math.inf:
            raise LaplaceLoRAError(
                f"prior {method} is no precision; choose auto, evidence, validation, cross-fit or a positive number."
            )
        if method == "validation" and validation is None:
            raise LaplaceLoRAError(
                "prior 'validation' needs held-out data; give it with --validation, or use cross-fit or auto."
            )
        if method != "validation" and validation is not None:
            raise LaplaceLoRAError(
                f"prior {self.method} uses no held-out data; leave out --validation, or use prior validation."
            )
        if self.score is not None and self.score not in SCORES:
            raise LaplaceLoRAError(f"score {self.score!r} is not known; choose one of {', '.join(SCORES)}.")
        if self.mean is not None and self.mean not in MEANS:
            raise LaplaceLoRAError(f"prior mean {self.mean!r} is not known; choose start or zero.")
        held_out = method in ("validation", "cross_fit")
        for option, given, used in (
            ("--score", self.score is not None, held_out),
            ("--no-temperature", not self.temperature, held_out),
            ("--folds", self.folds is not None, method == "cross_fit"),
            ("--prior-mean", self.mean is not None, method in ("auto", "evidence")),
        ):
            if given and not used:
                raise LaplaceLoRAError(f"{option} has no use where the prior is chosen by {method}; leave it out.")
        return dataclasses.replace(self, method=method)

    @property
    def shown(self) -> str:
        """What messages call the way."""
        return "as given" if not isinstance(self.method, str) else f"by {self.method.replace('_', '-')}"


def starting_point(folder: Path, wish: PriorWish) -> dict[str, Tensor] | None:
    """Read the prior's mean.

    Args:
        folder: The adapter's files.
        wish: A settled wish.

    Returns:
        The adapter before its training; None where the mean is zero.

    Raises:
        AdapterFileError: It is wanted and not there, or damaged.
    """
    path = folder / STARTING_POINT_NAME
    if wish.method not in ("auto", "evidence") or wish.mean == "zero" or (wish.mean is None and not path.exists()):
        return None
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterFileError(
            f"{path} cannot be read ({first_line(error)}): laplace-lora train leaves there what the adapter was before "
            "its first step; use --prior-mean zero."
        ) from error


def say_prior(console: Console, la: LaplaceLoRA, wish: PriorWish) -> None:
    """Say what was chosen.

    Args:
        console: Takes the message.
        la: The tuned estimator.
        wish: A settled wish.
    """
    precision = la.prior_precision
    one = isinstance(precision, float)
    shown = precision if isinstance(precision, float) else min(precision.values())
    raised = (
        "" if la.prior_raised == 1.0 else f" ({la.prior_raised:.3g} x the evidence's: the adapter is not over-fitted)"
    )
    warm = "" if la.temperature == 1.0 else f", temperature of the mean logits {la.temperature:.3g}"
    console.say(
        "prior",
        f"prior precision {wish.shown}: {shown:.4g}{'' if one else ' and above, by group'}{raised}{warm}",
        prior_precision=precision,
        temperature=la.temperature,
        raised=la.prior_raised,
        keeps_answers=la.keeps_answers,
    )
