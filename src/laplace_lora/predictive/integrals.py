"""Probabilities and expected entropies of Gaussian logits, by deterministic rules."""

import math

import torch
from torch import Tensor

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.predictive.gaussian import require_gaussian
from laplace_lora.predictive.joint import joint_integrals
from laplace_lora.predictive.logistic_normal import logistic_normal
from laplace_lora.predictive.sequential import class_integrals

# Examples are taken together until their temporary tensors (the covariances of all differences; for three classes
# the nodes) have this many elements.
_CHUNK = 2**18
# Up to so many classes, one rule per class is the more accurate for its cost; beyond, one for all, with more nodes.
_MOST_CLASSES_ONE_BY_ONE = 12
_JOINT_NODES_PER_POINT = 16
_TANH_SINH_NODES = 97


def expected_softmax(mean: Tensor, covariance: Tensor, points: int = 4096) -> tuple[Tensor, Tensor]:
    """Average softmax(f), and its entropy, over Gaussian logits f ~ N(mean, covariance).

    Nothing here is random: the same logits give the same probabilities, whatever batch they are in. The largest
    absolute errors of a probability, over random means, covariances of every rank and standard deviations up to 30:

    - two classes 1e-9 and three classes 1e-8, at any standard deviation: one-dimensional quadrature;
    - four 7e-5, five and six 2e-4 (the expected entropy 4e-4), up to twelve 4e-4: sequential conditioning
      (:mod:`laplace_lora.predictive.sequential`);
    - more 1.5e-3: one net for all classes (:mod:`laplace_lora.predictive.joint`).

    Working memory beyond the results stays below 100 MB, whatever B, for points up to 32,768 and K up to 12, and grows
    with B K^2, like the covariance, beyond.

    Args:
        mean: (B, K) means, in logits.
        covariance: (B, K, K) covariances, in squared logits, positive semi-definite of any rank. Only the differences
            of logits matter, so that the covariance of the centred logits serves as well.
        points: Nodes of the rule per class, for four classes and more; powers of two do best.

    Returns:
        (B, K) probabilities E softmax(f), which sum to one, and (B,) expected entropies E H[softmax(f)] in nats;
        float64.

    Raises:
        LaplaceLoRAError: The shapes do not fit, an entry is not finite, or there are too few points.
    """
    require_gaussian(mean, covariance, "expected_softmax")
    if points < (least := 8 * mean.shape[-1]):
        raise LaplaceLoRAError(f"{points} integration points are too few; pass at least {least}.")
    mean, covariance = mean.detach().double(), covariance.detach().double()
    examples, classes = mean.shape
    if examples == 0 or classes == 1:
        return torch.ones_like(mean), torch.zeros_like(mean[:, 0])
    if classes > _MOST_CLASSES_ONE_BY_ONE:
        probabilities, entropies = joint_integrals(mean, covariance, points * _JOINT_NODES_PER_POINT)
    else:
        rows = max(1, _CHUNK // (classes * max(classes**2, 4 * _TANH_SINH_NODES)))
        pairs = zip(mean.split(rows), covariance.split(rows), strict=True)
        terms = [_class_terms(*pair, points) for pair in pairs]
        probabilities, entropies = (torch.cat(list(parts)) for parts in zip(*terms, strict=True))
    return probabilities / probabilities.sum(dim=1, keepdim=True), entropies.sum(dim=1)


def _class_terms(mean: Tensor, covariance: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Return (B, K) E softmax_k and (B, K) E[-softmax_k log softmax_k], not yet normalised."""
    difference, spread = class_differences(mean, covariance)
    shape = mean.shape
    difference, spread = difference.flatten(0, 1), spread.flatten(0, 1)
    match shape[1]:
        case 2:
            terms = logistic_normal(difference[:, 0], spread[:, 0, 0].clamp(min=0.0).sqrt())
        case 3:
            terms = _three_classes(difference, spread)
        case _:
            terms = class_integrals(difference, spread, points)
    return terms[0].reshape(shape), terms[1].reshape(shape)


def class_differences(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Pass from K logits to the K - 1 differences f_k - f_j of every class k.

    Args:
        mean: (B, K) means, in logits.
        covariance: (B, K, K) covariances, in squared logits.

    Returns:
        (B, K, K-1) means and (B, K, K-1, K-1) covariances of the differences, j in ascending order.
    """
    classes = mean.shape[1]
    own = torch.arange(classes, device=mean.device)
    others = own.expand(classes, classes)[~torch.eye(classes, dtype=torch.bool, device=mean.device)]
    others = others.reshape(classes, classes - 1)
    with_own = covariance[:, own[:, None], others]
    variance = covariance.diagonal(dim1=1, dim2=2)
    spread = covariance[:, others[:, :, None], others[:, None, :]] + variance[:, :, None, None]
    spread -= with_own[:, :, :, None] + with_own[:, :, None, :]
    return mean[:, :, None] - mean[:, others], spread


def _three_classes(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Integrate over the two differences f_k - f_j of three classes.

    Generalised least squares splits d_j = w + e_j with e independent of w and of one dimension, e_j = l_j z,
    z ~ N(0, 1). Given z, w is left, with its standard deviation s: two classes at the logit -log(exp(-m_1 - l_1 z) +
    exp(-m_2 - l_2 z)). As a function of z this bends sharply in three places at most, where two of the three classes
    are level, on the scale 1 / l. Between these places the rule is tanh-sinh (Takahasi & Mori, "Double exponential
    formulas for numerical integration", 1974), whose nodes crowd towards both ends of an interval on every scale.

    Args:
        mean: (R, 2) means of the differences, in logits.
        covariance: (R, 2, 2) their covariances, in squared logits; of any rank.

    Returns:
        (R,) E softmax_k and (R,) E[-softmax_k log softmax_k] in nats.
    """
    first, both, second = covariance[:, 0, 0], covariance[:, 0, 1], covariance[:, 1, 1]
    gap_variance = first + second - 2.0 * both
    # Below this it is rounding, and the two differences are one.
    apart = gap_variance > 1e-13 * torch.maximum(first, second)
    gap = torch.where(apart, gap_variance, 1.0).sqrt()
    slopes = torch.where(apart[:, None], torch.stack([first - both, both - second], dim=1) / gap[:, None], 0.0)
    sd = (first - slopes[:, 0].square()).clamp(min=0.0).sqrt()

    reach = 8.5
    heights = torch.cat([mean, mean[:, :1] - mean[:, 1:]], dim=1)
    steepness = torch.cat([slopes, slopes[:, :1] - slopes[:, 1:]], dim=1)
    bends = torch.where(steepness != 0.0, -heights / steepness, reach).clamp(-reach, reach)
    ends = torch.nn.functional.pad(bends.sort(dim=1).values, (1, 0), value=-reach)
    ends = torch.nn.functional.pad(ends, (0, 1), value=reach)
    position, weight = _tanh_sinh(mean.device)
    width = ends[:, 1:, None] - ends[:, :-1, None]
    z = (ends[:, :-1, None] + width * position).flatten(1)
    weight = (width * weight).flatten(1) * torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)

    logits = -torch.logaddexp(-mean[:, :1] - slopes[:, :1] * z, -mean[:, 1:] - slopes[:, 1:] * z)
    probability, entropy = logistic_normal(logits, sd[:, None])
    return (weight * probability).sum(dim=1), (weight * entropy).sum(dim=1)


def _tanh_sinh(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rule's nodes and weights on [0, 1]."""
    t = torch.linspace(-3.1, 3.1, _TANH_SINH_NODES, dtype=torch.float64, device=device)
    step = 6.2 / (_TANH_SINH_NODES - 1)
    argument = math.pi * torch.sinh(t)
    position = torch.sigmoid(argument)
    return position, step * math.pi * torch.cosh(t) * position * torch.sigmoid(-argument)
