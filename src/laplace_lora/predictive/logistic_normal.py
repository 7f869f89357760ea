"""Expectations of the sigmoid, and of its entropy term, under a one-dimensional Gaussian."""

import dataclasses
import math

import torch
from torch import Tensor

# From this standard deviation (in logits) on, integrate over the logistic variable instead of the Gaussian one.
_WIDE = 1.5
_GAUSSIAN_STEP, _GAUSSIAN_REACH = 0.5, 8.0
# Largest number of elements of one temporary tensor.
_CHUNK = 2**20


def logistic_normal(mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    r"""Average sigma(x) and -sigma(x) log sigma(x) over x ~ N(mean, sd^2).

    Both are trapezoid sums over an analytic, decaying integrand, so that the error falls like
    exp(-2 pi a / step), a the distance of the nearest pole from the real axis (Trefethen & Weideman,
    "The exponentially convergent trapezoidal rule", SIAM Review 56, 2014). Over z = (x - mean) / sd the
    poles lie at pi / sd, and wide Gaussians would need a step of 1 / sd. They are integrated over x, where
    the poles lie at pi whatever sd is: E sigma = int sigma'(x) Phi((mean - x) / sd) dx (by parts; the
    probability that a logistic variable lies below a Gaussian one), and -sigma log sigma itself decays.

    Args:
        mean: (...) mean, in logits.
        sd: (...) standard deviation, not negative, in logits; 0 is exact. Broadcasts against ``mean``.

    Returns:
        (...) E sigma(x), a probability, and (...) E[-sigma(x) log sigma(x)], in nats; both float64, with
        absolute errors below 1e-9. Probabilities keep their relative accuracy down to about 1e-15.
    """
    mean, sd = torch.broadcast_tensors(mean.double(), sd.double())
    flat = [part.reshape(-1) for part in (mean, sd)]
    rows = max(1, _CHUNK // 128)
    parts = [
        _moments(one[:, None], two, step=0.75, reach=40.0)[:2]
        for one, two in zip(flat[0].split(rows), flat[1].split(rows), strict=True)
    ]
    probability, entropy = (torch.cat(list(pieces)).reshape(mean.shape) for pieces in zip(*parts, strict=True))
    return probability, entropy


@dataclasses.dataclass(frozen=True)
class LogisticNormalTable:
    """The two functions of :func:`logistic_normal` of the mean, for R fixed standard deviations.

    Cubic Hermite interpolation between nodes that lie 0.125 sqrt(1 + sd^2) apart. Absolute error below 4e-7
    within reach; beyond, where the functions are constant to 1e-8, the value at the end is taken.

    Attributes:
        step: (R, 1) distance between nodes, in logits.
        coefficients: (8, R, 2 half) per interval the four coefficients of E sigma, lowest power first,
            then those of E[-sigma log sigma].
    """

    step: Tensor
    coefficients: Tensor

    @classmethod
    def of(cls, sd: Tensor) -> "LogisticNormalTable":
        """Tabulate.

        Args:
            sd: (R,) standard deviations, in logits.

        Returns:
            The table, in float64.
        """
        half = 160
        sd = sd.double()
        step = 0.125 * (1.0 + sd.square()).sqrt()[:, None]
        nodes = step * torch.arange(-half, half + 1, dtype=torch.float64, device=sd.device)
        rows = max(1, _CHUNK // (nodes.shape[1] * 64))
        parts = [
            _moments(one, two, step=1.0, reach=24.0)
            for one, two in zip(nodes.split(rows), sd.split(rows), strict=True)
        ]
        probability, entropy, *slopes = (torch.cat(list(pieces)) for pieces in zip(*parts, strict=True))
        coefficients = [*_hermite(probability, slopes[0] * step), *_hermite(entropy, slopes[1] * step)]
        return cls(step, torch.stack(coefficients))

    def __call__(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Look up.

        Args:
            mean: (R, N) means, in logits.

        Returns:
            (R, N) E sigma and (R, N) E[-sigma log sigma], in nats.
        """
        intervals = self.coefficients.shape[-1]
        position = (mean / self.step + intervals / 2).clamp(0.0, intervals * (1.0 - 1e-15))
        index = position.long()
        offset = position - index
        c = self.coefficients
        values = []
        for first in (0, 4):
            value = c[first + 3].gather(1, index)
            for power in (2, 1, 0):
                value = torch.addcmul(c[first + power].gather(1, index), value, offset)
            values.append(value)
        return values[0], values[1]


def _moments(mean: Tensor, sd: Tensor, step: float, reach: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return E sigma, E[-sigma log sigma] and the derivatives of both in the mean: (R, G) from (R, G), (R,)."""
    results = mean.new_empty(4, *mean.shape)
    wide = sd >= _WIDE
    if wide.any():
        results[:, wide] = _over_logistic(mean[wide], sd[wide], step, reach)
    if not wide.all():
        results[:, ~wide] = _over_gaussian(mean[~wide], sd[~wide])
    return results[0], results[1], results[2], results[3]


def _over_logistic(mean: Tensor, sd: Tensor, step: float, reach: float) -> Tensor:
    count = int(reach / step)
    x = step * torch.arange(-count, count + 1, dtype=mean.dtype, device=mean.device)
    softplus = torch.nn.functional.softplus(-x)
    density = torch.sigmoid(x) * torch.sigmoid(-x)
    weights = step * torch.stack([torch.sigmoid(x) * softplus, density, density * (softplus - 1.0)], dim=-1)
    scale = sd[:, None, None]
    z = (mean[:, :, None] - x) / scale
    # erfc, not erf: a probability of 1e-12 keeps its relative accuracy.
    below = torch.special.erfc(z * -math.sqrt(0.5)) @ (0.5 * step * density)
    rest = torch.exp(-0.5 * z.square()) @ weights / (math.sqrt(2.0 * math.pi) * scale)
    return torch.cat([below[None], rest.movedim(-1, 0)])


def _over_gaussian(mean: Tensor, sd: Tensor) -> Tensor:
    count = int(_GAUSSIAN_REACH / _GAUSSIAN_STEP)
    z = _GAUSSIAN_STEP * torch.arange(-count, count + 1, dtype=mean.dtype, device=mean.device)
    weights = torch.exp(-0.5 * z.square())
    weights /= weights.sum()
    x = mean[:, :, None] + sd[:, None, None] * z
    sigmoid = torch.sigmoid(x)
    # Not 1 - sigmoid, which would cancel; -log sigma(x) = softplus(-x).
    density = sigmoid * torch.sigmoid(-x)
    softplus = torch.nn.functional.softplus(-x)
    terms = [sigmoid, sigmoid * softplus, density, density * (softplus - 1.0)]
    return torch.stack([term @ weights for term in terms])


def _hermite(values: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return cubic coefficients on [0, 1], lowest power first, of values and slopes (per interval) at nodes."""
    left, right = values[:, :-1], values[:, 1:]
    slope, end = slopes[:, :-1], slopes[:, 1:]
    rise = right - left
    return left, slope, 3.0 * rise - 2.0 * slope - end, slope + end - 2.0 * rise
