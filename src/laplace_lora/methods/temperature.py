"""Temperature scaling (Guo et al., "On calibration of modern neural networks", ICML 2017)."""

import dataclasses
import warnings
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.metrics import check_labels
from laplace_lora.evaluation.outputs import Logits, require_logits
from laplace_lora.methods.base import Answers, Fitted, Method, Subject, require_held_out
from laplace_lora.methods.forward import Loader, class_logits

#: Temperatures beyond say that the validation labels follow the logits perfectly, or not at all.
COLDEST, HOTTEST = 0.05, 100.0
# Halvings of 1 / T: after 60, float64 tells the two ends apart no more.
_STEPS = 64


def fit_temperature(logits: Logits, labels: ArrayLike) -> float:
    """Find the temperature T that minimises the negative log-likelihood of softmax(logits / T).

    The loss is convex in 1 / T, so that bisection of its derivative finds the only minimum:
    d/d(1/T) = mean over examples of E_softmax[f] - f_y.

    Args:
        logits: (N, K) of the trained adapter on held-out examples; probabilities and bare arrays are refused.
        labels: (N,) class indices.

    Returns:
        T, between 0.05 and 100; above 1 where the adapter is over-confident.

    Raises:
        LaplaceLoRAError: These are no logits, the labels do not fit them, or a label is an absent option.
    """
    values = require_logits(logits, "fit_temperature")
    index = check_labels(labels, *values.shape)
    chosen = values[np.arange(len(index)), index][:, None]
    if not np.isfinite(chosen).all():
        raise LaplaceLoRAError("a label is an option that its example lacks (a logit of -inf); mend the labels.")
    # Absent options have no probability at any temperature, and no part in the mean.
    gaps = np.where(np.isfinite(values), values - chosen, 0.0)

    def slope(inverse: float) -> float:
        return float((logits.softmax(1.0 / inverse).values * gaps).sum(axis=1).mean())

    low, high = 1.0 / HOTTEST, 1.0 / COLDEST
    if slope(low) >= 0.0:
        return HOTTEST
    if slope(high) <= 0.0:
        return COLDEST
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return 1.0 / (0.5 * (low + high))


class _Scaled(Fitted):
    def answer(self, loader: Loader) -> Answers:
        logits, _ = class_logits(self.subject.model, self.subject.readout, loader)
        return Answers(logits.softmax(self.found["temperature"]))


@dataclasses.dataclass(frozen=True)
class Temperature(Method):
    """Logits over a temperature that was chosen on held-out rows; answers stay the adapter's."""

    name: ClassVar[str] = "temperature"
    title: ClassVar[str] = "Temperature"
    needs_held_out: ClassVar[bool] = True

    def fit(self, subject: Subject) -> Fitted:
        """Choose the temperature: one forward pass over the held-out rows.

        Args:
            subject: The adapter.

        Returns:
            One forward pass per data set.

        Raises:
            LaplaceLoRAError: There are no held-out rows, or they have no labels.
        """
        held_out = require_held_out(subject, "temperature")
        with subject.stopwatch.watch("tune"):
            logits, labels = class_logits(subject.model, subject.readout, held_out)
            if labels is None:
                raise LaplaceLoRAError("the held-out rows have no labels; give labelled ones.")
            temperature = fit_temperature(logits, labels)
        if temperature in (COLDEST, HOTTEST):
            warnings.warn(
                f"the temperature is at its bound, {temperature:g}: the held-out labels follow the logits "
                f"{'perfectly' if temperature == COLDEST else 'not at all'}; hold more rows out.",
                stacklevel=2,
            )
        return _Scaled(subject, stored_bytes=8, found={"temperature": temperature})
