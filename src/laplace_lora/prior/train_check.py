"""Whether a tuned prior still explains the training data, without another model pass."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from laplace_lora.curvature import TrainCheckExamples
from laplace_lora.likelihoods import contrast_basis
from laplace_lora.posterior import Posterior
from laplace_lora.predictive import Predictive
from laplace_lora.prior.held_out import negative_log_likelihood
from laplace_lora.prior.validation import mean_nll

# How much worse the tuned predictive may be on the training data before the check speaks up.
NLL_MARGIN = 0.15
ACCURACY_MARGIN = 0.03
# How much worse it may be, in nats, of an adapter that is not over-fitted where the choice is to do no harm: of such an
# adapter, held-out data lose what training data lose (docs/tuning.md).
HARMLESS = 0.01
# Multiples of the precisions that are tried, a quarter of a decade apart.
_RAISED = tuple((10.0 ** torch.linspace(0.0, 6.0, 25, dtype=torch.float64)).tolist())
# An over-fitted adapter loses training likelihood too, and rightly. What tells it from a sound one is how many
# weights the data determined: fitting labels by heart takes nearly log K nats per example. Adapters with more
# effective parameters than this share of N log K were over-fitted in the trials (docs/tuning.md).
OVERFITTED_SHARE = 0.8
# Structures that see curvature between matrices count directions that several matrices share once, where others count
# them for every matrix: their gamma is smaller, and so is the share that tells the same adapters apart
# (docs/structures.md).
OVERFITTED_JOINT_SHARE = 0.46


@dataclasses.dataclass(frozen=True)
class TrainFit:
    """Gaussian logits of training examples under a prior.

    Attributes:
        mean: (n, K) logits of the trained adapter, float64.
        covariance: (n, K, K) covariance of the centred logits, float64.
        labels: (n,) class indices.
    """

    mean: Tensor
    covariance: Tensor
    labels: Tensor


def training_fit(posterior: Posterior, precision: Tensor, examples: TrainCheckExamples, block: int = 64) -> TrainFit:
    """Compute the functional covariance of stored training examples.

    With all K-1 directions D (in contrast coordinates) of an example, the contrasts' covariance is
    D^-T G D^-1, G the covariance along the directions: exact. A one-pass Fisher has stored one direction;
    its variance is then taken for every contrast, which is exact for two classes.

    Args:
        posterior: The likelihood part.
        precision: (G,) prior precisions.
        examples: What ``fit`` kept.
        block: Examples at a time.

    Returns:
        Means and covariances of the logits.
    """
    classes, count = examples.directions.shape[1:]
    contrasts = contrast_basis(classes)
    covariances, device = [], posterior.device
    for start in range(0, len(examples.labels), block):
        accumulator = posterior.accumulator(precision)
        for index, jacobians in enumerate(examples.jacobians):
            for row in range(count):
                accumulator.add(index, row, jacobians[start : start + block, row].to(device))
        with torch.autocast(device.type, enabled=False):
            along = accumulator.covariance()[0].cpu()
        if count == classes - 1:
            basis = contrasts.T @ examples.directions[start : start + block]
            inverse = torch.linalg.inv(basis)
            contrast = inverse.transpose(1, 2) @ along @ inverse
        else:
            contrast = along[:, :1] * torch.eye(classes - 1, dtype=torch.float64)
        covariances.append(contrasts @ contrast @ contrasts.T)
    return TrainFit(examples.logits, torch.cat(covariances), examples.labels)


def training_warning(
    predictive: Predictive, labels: Tensor, total: int, effective_parameters: float, joint: bool
) -> str | None:
    """Say so where a tuned prior explains the training data much worse than the trained adapter does.

    Args:
        predictive: Of the stored training examples, under the tuned prior.
        labels: (n,) their labels.
        total: Number of training examples they were drawn from.
        effective_parameters: gamma of the whole posterior under the tuned prior.
        joint: Whether the posterior sees curvature between matrices.

    Returns:
        The warning, or None.
    """
    if over_fitted(effective_parameters, total, predictive.mean.shape[-1], joint):
        return None
    map_nll, nll = _map_nll(predictive, labels), mean_nll(predictive, labels)
    map_accuracy = float((predictive.map_probabilities.argmax(dim=-1) == labels).double().mean())
    accuracy = float((predictive.prediction == labels).double().mean())
    if nll <= map_nll + NLL_MARGIN and accuracy >= map_accuracy - ACCURACY_MARGIN:
        return None
    return (
        f"evidence tuning made the adapter much less certain on its own training data: NLL {map_nll:.3f} -> {nll:.3f}, "
        f"accuracy {map_accuracy:.3f} -> {accuracy:.3f} on {len(labels)} of {total} examples (margins: {NLL_MARGIN} "
        f"nats, {ACCURACY_MARGIN:.2f}). An adapter that was not over-fitted becomes badly under-confident this "
        "way; tune on held-out data instead: tune_prior('validation', loader), or do no harm: tune_prior('auto')."
    )


def over_fitted(effective_parameters: float, total: int, classes: int, joint: bool) -> bool:
    """Say whether the data determine so many weights that they must have been learnt by heart.

    Args:
        effective_parameters: gamma of the whole posterior at the evidence's maximum.
        total: N training examples.
        classes: K.
        joint: Whether the posterior sees curvature between matrices.

    Returns:
        Whether gamma is above 0.8 N log K; of a joint posterior, above 0.46 N log K.
    """
    share = OVERFITTED_JOINT_SHARE if joint else OVERFITTED_SHARE
    return effective_parameters > share * total * math.log(classes)


def harmless_multiple(at: Callable[[float], Predictive], labels: Tensor) -> float:
    """Raise precisions until the training data lose no more than 0.01 nats of the trained adapter's likelihood.

    Args:
        at: The predictive of training examples at a multiple of the evidence's precisions.
        labels: (n,) their labels.

    Returns:
        The least of the multiples 1, 1.78, 3.16, ... that does; 10^6 if none does.
    """
    low, high = 0, len(_RAISED) - 1
    while low < high:  # the loss falls as the precision rises, towards the trained adapter's
        middle = (low + high) // 2
        found = at(_RAISED[middle])
        if mean_nll(found, labels) <= _map_nll(found, labels) + HARMLESS:
            high = middle
        else:
            low = middle + 1
    return _RAISED[low]


def _map_nll(predictive: Predictive, labels: Tensor) -> float:
    return float(negative_log_likelihood(predictive.map_probabilities, labels))
