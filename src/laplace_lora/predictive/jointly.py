"""Several examples' outputs as one Gaussian: what the labels of some say of the others."""

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class JointPredictive:
    """Gaussian outputs of n examples together, float64.

    Attributes:
        mean: (n, K) raw logits of the trained adapter, or other outputs; -inf for options that an example lacks.
        covariance: (n, K, n, K) J P^-1 J^T, in squared logits: ``covariance[i, :, j, :]`` is that of example i's with
            example j's. Of the centred logits, as ``Predictive.covariance``; of the outputs themselves where these are
            options' scores, rewards or real numbers. 0 for absent options.
        noise_variance: Of what is observed of real outputs; None of classes.
        temperature: Divides the mean logits in probabilities.
        keeps_answers: Whether probabilities spread the variance evenly over the contrasts
            (:mod:`laplace_lora.predictive.even`).
    """

    mean: Tensor
    covariance: Tensor
    noise_variance: float | None = None
    temperature: float = 1.0
    keeps_answers: bool = False

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.mean.shape[0]

    @property
    def matrix(self) -> Tensor:
        """The covariance as one (n K, n K) matrix, example after example; positive semi-definite up to rounding."""
        return self.covariance.flatten(2).flatten(0, 1)

    def averaged(self) -> tuple[Tensor, Tensor]:
        """Return the Gaussian logits over which probabilities are averaged.

        Every example's own are those of :meth:`laplace_lora.Predictive.from_gaussian`.

        Returns:
            (n, K) means divided by the temperature, and (n, K, n, K) covariances, evened where answers are kept.
        """
        covariance = jointly_evened(self.covariance, self.mean.isfinite()) if self.keeps_answers else self.covariance
        return self.mean / self.temperature, covariance


def jointly_evened(covariance: Tensor, present: Tensor) -> Tensor:
    """Spread the variance of every example's contrasts evenly over them, and what examples share likewise.

    With H_i the centring of example i's k_i logits, the blocks become t_ij H_i H_j, t_ij = tr(H_i C_ij H_j) /
    sqrt((k_i - 1)(k_j - 1)). t is a partial trace, the blocks H_i H_j a Gram matrix, and their elementwise product
    positive semi-definite as both are (Schur); on the diagonal it is :func:`laplace_lora.predictive.even.evened`.

    Args:
        covariance: (n, K, n, K) of the logits; a common shift of an example's does not matter.
        present: (n, K) which logits an example has.

    Returns:
        (n, K, n, K).
    """
    own = present.to(covariance)
    counts = own.sum(dim=1)
    centring = torch.diag_embed(own) - own[:, :, None] * own[:, None, :] / counts[:, None, None]
    overlap = torch.einsum("iab,jbc->iajc", centring, centring)
    # tr(H_i C_ij H_j) = sum over a, b of C_ij[a, b] (H_j H_i)[b, a], and both are symmetric.
    total = (covariance * overlap).sum(dim=(1, 3))
    scale = (counts - 1.0).clamp(min=1.0).rsqrt()
    return (total * scale[:, None] * scale)[:, None, :, None] * overlap
