"""Every way to rank unlabelled examples, by name."""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from laplace_lora.acquisition.bald import bald
from laplace_lora.acquisition.base import Batch
from laplace_lora.acquisition.batch_bald import batch_bald
from laplace_lora.acquisition.entropy import entropy
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.predictive import Predictive


@dataclasses.dataclass(frozen=True)
class Method:
    """How examples are ranked.

    Attributes:
        score: Of single examples, in nats, the more the better; where there is a ``batch``, what candidates are taken
            by.
        batch: Chooses a batch of candidates by what they share, called as :func:`batch_bald`; None where examples are
            ranked one by one.
    """

    score: Callable[[Predictive], Tensor]
    batch: Callable[..., Batch] | None = None


METHODS: dict[str, Method] = {
    "bald": Method(bald),
    "batch_bald": Method(bald, batch_bald),
    "entropy": Method(entropy),
}


def find_method(name: str) -> Method:
    """Return a method.

    Args:
        name: Key of :data:`METHODS`.

    Returns:
        The method.

    Raises:
        LaplaceLoRAError: There is none of that name.
    """
    if name not in METHODS:
        raise LaplaceLoRAError(f"method {name!r} is not known; choose one of {', '.join(METHODS)}.")
    return METHODS[name]
