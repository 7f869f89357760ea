"""Prior precisions and a temperature chosen together on held-out data, with a weak prior on their logarithms.

What is minimised is N times the score (NLL, Brier score or ECE) plus

    (m - log 30)^2 / 2 s_c^2 + sum_g (m_g - m)^2 / 2 s_g^2 + (log T)^2 / 2 s_T^2,

m_g = log delta_g - log delta_g0 the groups' moves from the precisions before, and m their mean. Where the data say
little the precisions end thirty times above those before, nearer to the trained adapter's own predictions, whose
probabilities forty examples then hardly change (docs/tuning.md). The score's derivatives come from autograd; first a
coarse scan over a common factor and T finds the basin, then L-BFGS descends in it.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from torch.autograd import grad  # by name: of arithmetic alone, where tests count the model's backward passes

from laplace_lora.config import Score
from laplace_lora.prior.held_out import HeldOut, score

#: Where the weak prior has the common level of all precisions: so many times those before.
LEVEL = 30.0
#: Standard deviations of the natural logarithms: of the common level, of a group beside it, of the temperature.
LEVEL_SD, GROUP_SD, TEMPERATURE_SD = math.log(100.0), math.log(10.0), math.log(1.5)
#: How far precisions may move from where they were, and the temperatures that are allowed.
FARTHEST, COLDEST, HOTTEST = math.log(1e8), math.log(0.05), math.log(100.0)
_SCAN_LEVELS = tuple(math.log(10.0) * exponent for exponent in (-3, -2, -1, 0, 1, 2, 3, 5, 8))
_SCAN_TEMPERATURES = tuple(math.log(value) for value in (0.5, 1.0, 2.0, 4.0))
_SCAN_NODES = 256
_STEPS = 60


@dataclasses.dataclass(frozen=True)
class JointChoice:
    """Where the minimum is.

    Attributes:
        precision: (G,) prior precisions, in 1 / weight^2.
        temperature: Divides the mean logits.
        score: Of the held-out data there, without the weak prior.
        evaluations: How often the score was computed.
    """

    precision: Tensor
    temperature: float
    score: float
    evaluations: int


def choose_jointly(
    folds: Sequence[HeldOut], initial: Tensor, kind: Score = "nll", tune_temperature: bool = True
) -> JointChoice:
    """Choose precisions and temperature.

    Args:
        folds: Held-out examples, of one adapter or of several folds' adapters.
        initial: (G,) precisions delta_0 to start from.
        kind: The score.
        tune_temperature: Whether T is chosen; 1 if not.

    Returns:
        The choice.
    """
    objective = _Objective(folds, initial.double().cpu().log(), kind, tune_temperature)
    temperatures = _SCAN_TEMPERATURES if tune_temperature else (0.0,)
    scan = [(level, t) for level in _SCAN_LEVELS for t in temperatures]
    starts = [np.array([*([level] * len(initial)), t]) for level, t in scan]
    best = min(starts, key=lambda start: objective.value(start, _SCAN_NODES))
    bounds = [(-FARTHEST, FARTHEST)] * len(initial) + [(COLDEST, HOTTEST) if tune_temperature else (0.0, 0.0)]
    if kind == "ece":  # jumps where a confidence changes its bin: no derivatives
        found = scipy.optimize.minimize(objective.value, best, method="Nelder-Mead", bounds=bounds)
    else:
        found = scipy.optimize.minimize(
            objective.with_gradient, best, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS}
        )
    x = found.x if found.fun <= objective.value(best) else best
    precision = (objective.start + torch.tensor(x[:-1])).exp()
    temperature = float(math.exp(x[-1]))
    with torch.no_grad():
        reached = float(score(folds, precision, temperature, kind))
    return JointChoice(precision, temperature, reached, objective.evaluations)


@dataclasses.dataclass
class _Objective:
    """The penalised score, by (log delta - log delta_0, log T)."""

    folds: Sequence[HeldOut]
    start: Tensor
    kind: Score
    tune_temperature: bool
    evaluations: int = 0

    def value(self, x: np.ndarray, nodes: int | None = None) -> float:
        with torch.no_grad():
            return float(self._at(torch.tensor(x), nodes))

    def with_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(x, requires_grad=True)
        value = self._at(point, None)
        (gradient,) = grad(value, point)
        return float(value.detach()), gradient.numpy()

    def _at(self, point: Tensor, nodes: int | None) -> Tensor:
        self.evaluations += 1
        moved, log_temperature = point[:-1], point[-1]
        examples = sum(map(len, self.folds))
        value = score(self.folds, (self.start + moved).exp(), log_temperature.exp(), self.kind, nodes)
        level = moved.mean()
        penalty = ((level - math.log(LEVEL)) / LEVEL_SD).square() + ((moved - level) / GROUP_SD).square().sum()
        return examples * value + 0.5 * (penalty + (log_temperature / TEMPERATURE_SD).square())
