"""Examples with different numbers of options: logits of -inf and probabilities of 0 for those that are absent."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from laplace_lora.config import PredictiveRule
from laplace_lora.predictive.prediction import Predictive


def of_options(
    mean: Tensor,
    covariance: Tensor,
    rule: PredictiveRule = "integral",
    points: int = 4096,
    temperature: float = 1.0,
    keeps_answers: bool = False,
) -> Predictive:
    """Average the softmax over every example's own options.

    Args:
        mean: (B, K) scores, -inf for absent options, which come last.
        covariance: (B, K, K) their covariance, 0 for absent options.
        rule: As for :meth:`Predictive.from_gaussian`.
        points: As for :meth:`Predictive.from_gaussian`.
        temperature: As for :meth:`Predictive.from_gaussian`.
        keeps_answers: As for :meth:`Predictive.from_gaussian`.

    Returns:
        The predictive distribution.
    """
    counts = torch.isfinite(mean).sum(dim=1)
    if int(counts.min()) == mean.shape[1]:
        return Predictive.from_gaussian(mean, covariance, rule, points, temperature, keeps_answers)
    parts, order = [], []
    for count in sorted(set(counts.tolist())):
        rows = (counts == count).nonzero()[:, 0]
        own = mean[rows, :count], covariance[rows, :count, :count]
        parts.append(_of_equal(*own, rule, points, temperature, keeps_answers))
        order.append(rows)
    together = concatenate(parts, options=mean.shape[1])
    back = torch.cat(order).argsort()
    return _mapped(together, lambda _, value: value[back])


def concatenate(parts: Sequence[Predictive], options: int | None = None) -> Predictive:
    """Join batches whose examples have different numbers of options.

    Args:
        parts: At least one.
        options: Number of options to widen all to; that of the widest if not given.

    Returns:
        One object with all examples, in order.
    """
    widest = options or max((part.mean.shape[-1] for part in parts), default=0)
    return Predictive.concatenate([_widened(part, widest) for part in parts])


def _of_equal(
    mean: Tensor, covariance: Tensor, rule: PredictiveRule, points: int, temperature: float, keeps_answers: bool
) -> Predictive:
    if mean.shape[1] > 1:
        return Predictive.from_gaussian(mean, covariance, rule, points, temperature, keeps_answers)
    sure, zero = torch.ones_like(mean, dtype=torch.float64), torch.zeros(len(mean), dtype=torch.float64).to(mean.device)
    return Predictive(mean.double(), covariance.double(), sure, sure, zero, zero, zero, zero)


def _widened(part: Predictive, options: int) -> Predictive:
    missing = options - part.mean.shape[-1]
    if not missing:
        return part
    padding = {"mean": (0, missing), "covariance": (0, missing, 0, missing)}
    padding |= dict.fromkeys(("probabilities", "map_probabilities"), (0, missing))

    def widen(name: str, value: Tensor) -> Tensor:
        fill = float("-inf") if name == "mean" else 0.0
        return torch.nn.functional.pad(value, padding[name], value=fill) if name in padding else value

    return _mapped(part, widen)


def _mapped(part: Predictive, change: Callable[[str, Tensor], Tensor]) -> Predictive:
    return Predictive(
        **{field.name: change(field.name, getattr(part, field.name)) for field in dataclasses.fields(part)}
    )
