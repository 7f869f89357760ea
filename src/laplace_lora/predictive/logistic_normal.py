"""Expectations of the sigmoid, and of its entropy term, under a one-dimensional Gaussian."""

import dataclasses
import math

import torch
from torch import Tensor

# From this standard deviation (in logits) on, integrate over the logistic variable instead of the Gaussian one.
_WIDE = 1.5
_GAUSSIAN_STEP, _GAUSSIAN_REACH = 0.5, 8.0
# Largest number of elements of one temporary tensor; small, so that temporaries stay in the processor's cache.
_CHUNK = 2**17
# Nodes of a table on either side of 0, and their distance in units of sqrt(1 + sd^2) logits.
_TABLE_HALF, _TABLE_STEP = 58, 0.35


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
        _moments(one[:, None], two, step=0.75, reach=40.0, derivatives=0)[:, 0, :, 0]
        for one, two in zip(flat[0].split(rows), flat[1].split(rows), strict=True)
    ]
    probability, entropy = torch.cat(parts, dim=1)
    return probability.reshape(mean.shape), entropy.reshape(mean.shape)


@dataclasses.dataclass(frozen=True)
class LogisticNormalTable:
    """The two functions of :func:`logistic_normal` of the mean, for R fixed standard deviations.

    Quintic Hermite interpolation (values and two derivatives) between nodes that lie 0.35 sqrt(1 + sd^2) apart.
    Absolute error below 1e-7 within reach; beyond, where the functions are constant to 4e-8, the value at the end.

    Attributes:
        step: (R, 1) distance between nodes, in logits.
        coefficients: (2, 6, R, intervals) coefficients of E sigma and of E[-sigma log sigma] in every
            interval, lowest power first.
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
        sd = sd.double()
        step = _TABLE_STEP * (1.0 + sd.square()).sqrt()[:, None]
        nodes = step * torch.arange(-_TABLE_HALF, _TABLE_HALF + 1, dtype=torch.float64, device=sd.device)
        rows = max(1, _CHUNK // (nodes.shape[1] * 64))
        parts = [
            _moments(one, two, step=0.75, reach=24.0, derivatives=2)
            for one, two in zip(nodes.split(rows), sd.split(rows), strict=True)
        ]
        moments = torch.cat(parts, dim=2)
        scaled = [moments[:, power] * step**power for power in range(3)]
        return cls(step, _quintic(*scaled))

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
        values = []
        for coefficients in self.coefficients:
            value = coefficients[5].gather(1, index)
            for power in (4, 3, 2, 1, 0):
                value = torch.addcmul(coefficients[power].gather(1, index), value, offset)
            values.append(value)
        return values[0], values[1]


def _moments(mean: Tensor, sd: Tensor, step: float, reach: float, derivatives: int) -> Tensor:
    """Return E sigma and E[-sigma log sigma] and their derivatives in the mean.

    Args:
        mean: (R, G) means.
        sd: (R,) standard deviations.
        step: Distance of the nodes of the trapezoid over the logistic variable.
        reach: Largest node of it.
        derivatives: How many derivatives to take.

    Returns:
        (2, 1 + derivatives, R, G).
    """
    results = mean.new_empty(2, 1 + derivatives, *mean.shape)
    wide = sd >= _WIDE
    if wide.any():
        results[:, :, wide] = _over_logistic(mean[wide], sd[wide], step, reach, derivatives)
    if not wide.all():
        results[:, :, ~wide] = _over_gaussian(mean[~wide], sd[~wide], derivatives)
    return results


def _over_logistic(mean: Tensor, sd: Tensor, step: float, reach: float, derivatives: int) -> Tensor:
    count = int(reach / step)
    x = step * torch.arange(-count, count + 1, dtype=mean.dtype, device=mean.device)
    sigmoid, entropy = _sigmoid_terms(x, derivatives)
    # All but E sigma itself are averages of functions that decay, over the Gaussian density.
    weights = step * torch.stack(sigmoid[1:] + entropy, dim=-1)
    scale = sd[:, None, None]
    z = (mean[:, :, None] - x) / scale
    # erfc, not erf: a probability of 1e-12 keeps its relative accuracy.
    below = torch.special.erfc(z * -math.sqrt(0.5)) @ (0.5 * step * _sigmoid_terms(x, 1)[0][1])
    rest = torch.exp(-0.5 * z.square()) @ weights / (math.sqrt(2.0 * math.pi) * scale)
    return torch.cat([below[None], rest.movedim(-1, 0)]).unflatten(0, (2, 1 + derivatives))


def _over_gaussian(mean: Tensor, sd: Tensor, derivatives: int) -> Tensor:
    count = int(_GAUSSIAN_REACH / _GAUSSIAN_STEP)
    z = _GAUSSIAN_STEP * torch.arange(-count, count + 1, dtype=mean.dtype, device=mean.device)
    weights = torch.exp(-0.5 * z.square())
    weights /= weights.sum()
    sigmoid, entropy = _sigmoid_terms(mean[:, :, None] + sd[:, None, None] * z, derivatives)
    return torch.stack([term @ weights for term in sigmoid + entropy]).unflatten(0, (2, 1 + derivatives))


def _sigmoid_terms(x: Tensor, derivatives: int) -> tuple[list[Tensor], list[Tensor]]:
    """Return sigma(x) and -sigma(x) log sigma(x), each followed by up to two derivatives."""
    sigmoid, complement = torch.sigmoid(x), torch.sigmoid(-x)
    softplus = torch.nn.functional.softplus(-x)
    density = sigmoid * complement
    bend = density * (complement - sigmoid)
    terms = [sigmoid, density, bend]
    entropy_terms = [sigmoid * softplus, density * (softplus - 1.0), bend * (softplus - 1.0) - density * complement]
    return terms[: derivatives + 1], entropy_terms[: derivatives + 1]


def _quintic(values: Tensor, slopes: Tensor, bends: Tensor) -> Tensor:
    """Return the coefficients (2, 6, R, intervals) of quintics on [0, 1] from values and derivatives at nodes."""
    a, b = slopes[..., :-1], slopes[..., 1:]
    p, q = bends[..., :-1], bends[..., 1:]
    rise = values.diff(dim=-1)
    coefficients = [
        values[..., :-1],
        a,
        0.5 * p,
        10.0 * rise - 6.0 * a - 4.0 * b - 1.5 * p + 0.5 * q,
        -15.0 * rise + 8.0 * a + 7.0 * b + 1.5 * p - q,
        6.0 * rise - 3.0 * (a + b) - 0.5 * (p - q),
    ]
    return torch.stack(coefficients, dim=1)
