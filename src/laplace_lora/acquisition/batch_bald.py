"""BatchBALD: examples whose labels together tell most of the weights (Kirsch et al., NeurIPS 2019).

I(y_1 ... y_b ; theta) = H(y_1 ... y_b) - sum_i E H(y_i | theta) is submodular, so that taking the example of the
largest gain b times reaches at least (1 - 1/e) of the best batch's information (Nemhauser et al., 1978). The gain of a
candidate c is H(y_c | y_chosen) - E H(y_c | theta).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from laplace_lora.acquisition.base import Batch
from laplace_lora.errors import LaplaceLoRAError, MemoryLimitError
from laplace_lora.predictive import JointPredictive
from laplace_lora.predictive.gaussian import principal_axes

_SEED = 0
# A scrambled Sobol net is better than random numbers in its first coordinates; two late ones can be as good as equal.
_SOBOL_AXES = 64
# Draws that are worked on together.
_BLOCK = 1024


def batch_bald(
    joint: JointPredictive,
    count: int,
    points: int = 16_384,
    configurations: int = 512,
    memory_limit_bytes: int = 4 * 2**30,
) -> Batch:
    """Choose a batch greedily by the mutual information of all its labels with the weights.

    Of classes, the weights are represented by draws of all candidates' logits together. As long as there are at most
    ``configurations`` ways to label the chosen examples, all are enumerated, and the information is exactly that of
    the draws: not negative, submodular. Beyond, so many of them are kept at every step, in proportion to their
    probability, and their mean is unbiased for the draws' conditional entropy. b labels cannot tell more than
    log(points) nats of one draw among ``points``: gains are too small from about two nats below that. Nothing is random
    but by a fixed seed.

    Of real numbers observed with noise, the information is 1/2 log det(I + C / noise variance), and exact.

    Time: 2 S n M K operations per chosen example for n candidates, S draws and M configurations.

    Args:
        joint: The candidates.
        count: Size of the batch; all candidates where there are fewer.
        points: Draws, S.
        configurations: Ways to label the chosen examples that are kept, M.
        memory_limit_bytes: Of the draws' probabilities, the configurations' weights and labels' probabilities given
            them, the draws that are worked on together, and the axes of the covariance,
            8 (S n K + 3 S M + 2 M n K + 4 S' n K + (n K)^2) bytes, S' up to 1,024; and of what finding the axes takes
            before, 64 (n K)^2.

    Returns:
        The batch.

    Raises:
        LaplaceLoRAError: Sizes are not positive, or nothing is observed of the outputs.
        MemoryLimitError: The draws would exceed the limit.
    """
    if min(count, points, configurations) < 1:
        raise LaplaceLoRAError(
            f"a batch of {count} from {points} draws and {configurations} configurations cannot be chosen; give at "
            "least 1 of each."
        )
    count = min(count, len(joint))
    if joint.noise_variance is not None:
        return _of_numbers(joint, count)
    candidates, classes = joint.mean.shape
    if classes < 2:
        raise LaplaceLoRAError("batch_bald needs classes, or numbers observed with noise; rank by predict's sd.")
    needed = _bytes(points, candidates * classes, configurations)
    if needed > memory_limit_bytes:
        raise MemoryLimitError(
            f"{points} draws of {candidates} candidates with {classes} classes take {needed} bytes; the limit is "
            f"{memory_limit_bytes}. Give fewer candidates or points, or raise memory_limit_bytes."
        )
    return _of_classes(_drawn_probabilities(joint, points), count, configurations)


def _bytes(points: int, labels: int, configurations: int) -> int:
    """Count what is held, beside the covariance itself, at most: see :func:`batch_bald`."""
    together = labels * (points + 2 * configurations + 4 * min(points, _BLOCK) + labels)
    return 8 * max(8 * labels**2, together + 3 * points * configurations)


def _of_classes(p: Tensor, count: int, most: int) -> Batch:
    """Choose by (S, n, K) probabilities of S draws."""
    draws, candidates, classes = p.shape
    flat = p.view(draws, -1)
    # Of the same draws as the entropies: the difference is then an information, and cannot be negative.
    aleatoric = sum(torch.special.entr(part).sum(dim=(0, 2)) for part in p.split(_BLOCK)) / draws
    generator = torch.Generator().manual_seed(_SEED)
    weights = p.new_ones(1)
    likelihood = p.new_zeros(1, draws)  # log p(labels of the chosen | draw)
    free = torch.ones(candidates, dtype=torch.bool, device=p.device)
    index: list[int] = []
    gains: list[float] = []
    for _ in range(count):
        # Given the labels, draws have the weights that they explain them with.
        conditional = (torch.softmax(likelihood, dim=1) @ flat).view(-1, candidates, classes)
        entropies = weights @ torch.special.entr(conditional).sum(dim=2)
        gain = torch.where(free, entropies - aleatoric, -math.inf)
        best = int(gain.argmax())
        index.append(best)
        gains.append(float(gain[best].clamp(min=0.0)))
        free[best] = False
        branches = (weights[:, None] * conditional[:, best]).flatten()
        weights, kept = _kept(branches, most, generator)
        parent, label = kept // classes, kept % classes
        likelihood = likelihood[parent]
        logarithms = p[:, best].T.log()
        for row, of in zip(likelihood, label.tolist(), strict=True):
            row += logarithms[of]
    return Batch(index, gains, draws)


def _kept(weights: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keep all that is possible, or ``most`` in proportion to their weights (systematic resampling)."""
    possible = (weights > 0.0).nonzero()[:, 0]
    weights = weights[possible] / weights.sum()
    if len(possible) <= most:
        return weights, possible
    start = torch.rand((), generator=generator, dtype=torch.float64).to(weights.device)
    places = (torch.arange(most, dtype=torch.float64, device=weights.device) + start) / most
    drawn = torch.searchsorted(weights.cumsum(dim=0), places).clamp(max=len(weights) - 1)
    return torch.full_like(places, 1.0 / most), possible[drawn]


def _drawn_probabilities(joint: JointPredictive, points: int) -> Tensor:
    """Return (S, n, K) probabilities of S draws of all examples' logits together, along their principal axes."""
    mean, covariance = joint.averaged()
    root = _root(covariance.flatten(2).flatten(0, 1))
    rank = root.shape[1]
    p = mean.new_empty(points, *mean.shape)
    for normal, out in zip(_standard_normal(points, rank), p.split(_BLOCK), strict=True):
        out.copy_(torch.softmax(mean + (normal.to(root) @ root.mT).view(-1, *mean.shape), dim=2))
    return p


def _root(matrix: Tensor) -> Tensor:
    """Return R with R R^T the matrix, its columns the principal axes, the widest first; none of variance 0."""
    variances, axes = principal_axes(matrix[None])
    order = variances[0].flip(0)
    rank = max(1, int((order > 0.0).sum()))
    return axes[0].flip(1)[:, :rank] * order[:rank].sqrt()


def _standard_normal(points: int, axes: int) -> Iterator[Tensor]:
    """Yield S rows (axes,) of normal numbers, a block at a time.

    They are a scrambled Sobol net where the variances are largest, and random beyond.
    """
    leading = min(axes, _SOBOL_AXES)
    engine = torch.quasirandom.SobolEngine(leading, scramble=True, seed=_SEED)
    generator = torch.Generator().manual_seed(_SEED)
    for start in range(0, points, _BLOCK):
        size = min(_BLOCK, points - start)
        cell = (engine.draw(size, dtype=torch.float64) * points).floor()
        normal = torch.special.ndtri((cell + 0.5) / points)
        rest = torch.randn(size, axes - leading, generator=generator, dtype=torch.float64)
        yield torch.cat([normal, rest], dim=1)


def _of_numbers(joint: JointPredictive, count: int) -> Batch:
    """Condition the Gaussian on each chosen number in turn."""
    covariance, noise = joint.matrix.clone(), joint.noise_variance
    assert noise is not None and joint.mean.shape[1] == 1
    free = torch.ones(len(covariance), dtype=torch.bool, device=covariance.device)
    index: list[int] = []
    gains: list[float] = []
    for _ in range(count):
        variance = covariance.diagonal().clamp(min=0.0)
        best = int(torch.where(free, variance, -math.inf).argmax())
        index.append(best)
        gains.append(0.5 * math.log1p(float(variance[best]) / noise))
        free[best] = False
        column = covariance[:, best].clone()
        covariance -= column[:, None] * column / (variance[best] + noise)
    return Batch(index, gains)
