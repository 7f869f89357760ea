r"""Expected softmax over Gaussian logits for four classes and more: one class difference after the other.

The probability of class k is 1 / (1 + sum_j exp(-d_j)) of the J = K - 1 differences d_j = f_k - f_j. With
c_0 = 0 and t_j = d_j + c_(j-1) it telescopes, exactly, into

    prod_j sigma(t_j),    c_j = log(1 + sum_(i <= j) exp(-d_i)) = c_(j-1) + softplus(-t_j),

and d_j given d_1 .. d_(j-1) is Gaussian. The last difference is integrated in closed form
(:mod:`laplace_lora.predictive.logistic_normal`), the others by a scrambled Sobol net in J - 1 dimensions, each drawn
where its own factor is not small. This is what Genz ("Numerical computation of multivariate normal
probabilities", J. Comput. Graph. Stat. 1, 1992) does for orthant probabilities, which are the limit of
large covariances, carried over from steps to sigmoids: the integrand that is left varies little and has no edges.

For the drawing, let y = softplus(t), so that dy = sigma(t) dt. If y follows N(m, s^2) cut off at y > 0, t has density
sigma(t) N(softplus(t); m, s^2) / Phi(m / s), which already holds the factor sigma(t), and

    sigma(t) N(t; m, s^2) / density = Phi(m / s) exp(c ((t + y) / 2 - m) / s^2),    c = y - t = softplus(-t),

is a bounded weight, constant wherever t is a few logits above 0.
"""

import functools
import math

import torch
from torch import Tensor

from laplace_lora.predictive.logistic_normal import LogisticNormalTable

# Conditional standard deviation (in logits) from which on a difference is drawn with its factor; below it, the
# sigmoid is smooth on the scale of the Gaussian, and the plain Gaussian does better.
_TILT_FROM = 1.5
# Where an earlier difference spreads over so many widths of the last factor, that factor is a steep function of it.
# These rows (covariances of low rank, mostly) get twice the points.
_STEEP = 2.0
# Share of the points moved towards the class boundary (y = 0), where the entropy comes from.
_BOUNDARY = 0.5
_SOBOL_SEED = 0
# Of the distribution whose distribution function the sigmoid is.
_LOGISTIC_VARIANCE = math.pi**2 / 3.0
# Largest number of elements of one temporary tensor; small, so that temporaries stay in the processor's cache.
_CHUNK = 2**16


def class_integrals(mean: Tensor, covariance: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Integrate softmax_k and its entropy term, one (example, class) pair per row.

    Args:
        mean: (R, J) means of the differences f_k - f_j, in logits.
        covariance: (R, J, J) their covariances, in squared logits; of any rank.
        points: Nodes per row; rows whose last factor is steep get twice as many.

    Returns:
        (R,) E softmax_k and (R,) E[-softmax_k log softmax_k] in nats, float64.
    """
    mean, root = order_and_factorise(mean, covariance)
    deviations = root.diagonal(dim1=-2, dim2=-1)
    tilted = deviations[:, :-1] >= _TILT_FROM
    width = (deviations[:, -1].square() + _LOGISTIC_VARIANCE).sqrt()
    steep = (tilted * deviations[:, :-1]).amax(dim=1) > _STEEP * width
    # Rows are taken together that go through the same steps.
    kinds, member = torch.unique(torch.cat([tilted, steep[:, None]], dim=1), dim=0, return_inverse=True)
    probability, entropy = torch.empty_like(mean[:, 0]), torch.empty_like(mean[:, 0])
    for number, kind in enumerate(kinds.tolist()):
        count = points * 2 if kind[-1] else points
        for rows in (member == number).nonzero()[:, 0].split(max(1, _CHUNK // count)):
            probability[rows], entropy[rows] = _integrate(mean[rows], root[rows], kind[:-1], count)
    return probability, entropy


def order_and_factorise(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Order the differences, the most decisive first, and factorise their covariance in that order.

    The next difference is the one least likely to be positive given that those before it are (Gibson, Glasbey &
    Elston, "Monte Carlo evaluation of multivariate normal integrals and sensitivity to variate ordering", 1994),
    which leaves the last factors close to one. Directions without variance give zero columns.

    Args:
        mean: (R, J) means, in logits.
        covariance: (R, J, J) covariances, in squared logits; of any rank.

    Returns:
        (R, J) means and (R, J, J) lower triangular roots, both in the new order.
    """
    rows, size = mean.shape
    index = torch.arange(rows, device=mean.device)
    left = covariance.clone()
    diagonal = left.diagonal(dim1=-2, dim2=-1)
    # What subtraction leaves of a variance that is gone: rounding, relative to the largest one.
    negligible = 1e-13 * diagonal.amax(dim=1)
    expected = mean.clone()
    root = torch.zeros_like(covariance)
    order = torch.empty(rows, size, dtype=torch.long, device=mean.device)
    taken = torch.zeros_like(mean, dtype=torch.bool)
    for step in range(size):
        score = expected / (diagonal.clamp(min=0.0) + _LOGISTIC_VARIANCE).sqrt()
        best = score.masked_fill(taken, torch.inf).argmin(dim=1)
        order[:, step], taken[index, best] = best, True
        variance = diagonal[index, best]
        present = variance > negligible
        column = torch.where(present[:, None], left[index, :, best] / variance.abs().sqrt()[:, None], 0.0)
        column = torch.where(taken & (torch.arange(size, device=mean.device) != best[:, None]), 0.0, column)
        left -= column[:, :, None] * column[:, None, :]
        root[:, :, step] = column
        # The mean of what is left, given that this difference came out positive (the inverse Mills ratio).
        ratio = score[index, best]
        mills = torch.exp(-0.5 * ratio.square() - torch.special.log_ndtr(ratio)) / math.sqrt(2.0 * math.pi)
        share = (variance.clamp(min=0.0) / (variance.clamp(min=0.0) + _LOGISTIC_VARIANCE)).sqrt()
        expected += column * (mills * share)[:, None]
    return mean.gather(1, order), root.gather(1, order[:, :, None].expand_as(root))


def _integrate(mean: Tensor, root: Tensor, tilted: list[bool], count: int) -> tuple[Tensor, Tensor]:
    deviations = root.diagonal(dim1=-2, dim2=-1)
    nodes = _sobol(len(tilted), count, str(mean.device))
    # Without tilting the integrand is a smooth function of the Gaussian variables, and getting their first two moments
    # exactly right makes small covariances exact to fourth order.
    plain = nodes.gaussian if any(tilted) else nodes.whitened
    normals: list[Tensor] = []
    shift = torch.zeros(len(mean), count, dtype=mean.dtype, device=mean.device)
    log_weight, weight = torch.zeros_like(shift), torch.ones_like(shift)
    for step, tilt in enumerate(tilted):
        centre = shift + mean[:, step, None]
        for earlier, normal in enumerate(normals):
            centre.addcmul_(root[:, step, earlier, None], normal)
        sd = deviations[:, step, None]
        if tilt:
            normal, excess, factor = _tilted_draw(centre, sd, nodes.from_above[step])
            weight *= factor * nodes.density[step]
        else:
            normal = plain[step].expand_as(shift)
            excess = torch.nn.functional.softplus(-torch.addcmul(centre, sd, normal))
            log_weight -= excess
        normals.append(normal)
        shift = shift + excess
    centre = shift + mean[:, -1, None]
    for earlier, normal in enumerate(normals):
        centre.addcmul_(root[:, -1, earlier, None], normal)
    probability, entropy = LogisticNormalTable.of(deviations[:, -1])(centre)
    weight *= log_weight.exp()
    # -log of the product is the sum of the logarithms so far, which is the shift, and the last one.
    return (weight * probability).mean(dim=1), (weight * torch.addcmul(entropy, shift, probability)).mean(dim=1)


def _tilted_draw(centre: Tensor, sd: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normal variable, softplus(-t) and the weight of a draw t = centre + sd * normal."""
    # Further down the factor is below 1e-13, and Phi would underflow.
    ratio = (centre / sd).clamp(min=-30.0)
    centre = ratio * sd
    mass = 0.5 * torch.special.erfc(ratio * -math.sqrt(0.5))
    y = (sd * (ratio - torch.special.ndtri(uniform * mass))).clamp(min=1e-12)
    excess = -torch.log(-torch.expm1(-y))
    t = y - excess
    weight = mass * torch.exp(excess * (0.5 * (t + y) - centre) / sd.square())
    return (t - centre) / sd, excess, weight


class _Nodes:
    """A scrambled Sobol net in the forms that the rule needs: each (dimensions, count), float64.

    Every coordinate of a net of ``count`` points (a power of two) has one value in each of ``count`` equal cells.
    Scrambling puts it anywhere in its cell; here it is put in the middle, or, among normal variables, at the root
    mean square of its cell, which makes all one-dimensional averages as good as a midpoint rule's and the variances
    exact, tails included, and leaves the net's structure across coordinates as it is.

    Attributes:
        from_above: Uniform variables, counted from the upper end, denser near it.
        density: Weights that make up for being denser.
        gaussian: Standard normal variables.
        whitened: The same, the small correlations that are left taken out too.
    """

    def __init__(self, uniform: Tensor) -> None:
        count = uniform.shape[1]
        cell = (uniform * count).long()
        middle = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        uniform = middle[cell]
        self.from_above = 1.0 - uniform * (1.0 - _BOUNDARY + _BOUNDARY * uniform)
        self.density = 1.0 - _BOUNDARY + 2.0 * _BOUNDARY * uniform
        edge = torch.special.ndtri(torch.arange(1, count, dtype=torch.float64) / count)
        # int_a^b z^2 phi(z) dz = Phi(b) - Phi(a) + a phi(a) - b phi(b), and z phi(z) is 0 at both infinities.
        moment = edge * torch.exp(-0.5 * edge.square()) / math.sqrt(2.0 * math.pi)
        square = 1.0 - count * torch.nn.functional.pad(moment, (1, 1)).diff()
        self.gaussian = (square.clamp(min=0.0).sqrt() * (middle - 0.5).sign())[cell]
        centred = self.gaussian - self.gaussian.mean(dim=1, keepdim=True)
        factor = torch.linalg.cholesky(centred @ centred.T / count)
        self.whitened = torch.linalg.solve_triangular(factor, centred, upper=False)

    def to(self, device: str) -> "_Nodes":
        """Move every form to a device, in place."""
        for name, value in vars(self).items():
            setattr(self, name, value.contiguous().to(device))
        return self


@functools.lru_cache(maxsize=4)
def _sobol(dimensions: int, count: int, device: str) -> _Nodes:
    # An engine with a seed of its own leaves torch's global generator alone.
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=_SOBOL_SEED)
    return _Nodes(engine.draw(count, dtype=torch.float64).T).to(device)
