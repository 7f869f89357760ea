"""The posterior over functions: Gaussian logits of every example of a loader, by linearising the model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor
from tqdm import tqdm

from laplace_lora.finite import require_finite
from laplace_lora.jacobians import HeadPass, JacobianPass, SiteGradient
from laplace_lora.likelihoods import Likelihood
from laplace_lora.posterior import CovarianceAccumulator
from laplace_lora.readouts import split_labels


def functional_covariances(
    jacobians: AbstractContextManager[JacobianPass | HeadPass],
    loader: Iterable[Mapping[str, Any]],
    likelihood: Likelihood,
    accumulator: Callable[[], CovarianceAccumulator],
    description: str | None,
    top_k: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Run the model over a loader and yield the linearised model's Gaussian logits, batch by batch.

    Each batch takes one forward pass and one backward pass per contrast of the logits (none for a head).

    Args:
        jacobians: The model, to be prepared for Jacobian passes.
        loader: Batches, read once.
        likelihood: Says which contrasts of the logits matter.
        accumulator: Makes an empty accumulator of the posterior, for S scales of the prior.
        description: Label of the progress bar; None for no bar.
        top_k: Let only so many logits of every example vary, the largest ones; all if not given.

    Yields:
        Logits (B, K); covariances C (J P^-1 J^T) C^T (S, B, K, K), J the Jacobian of the contrasts C (or (S, B, k, k)
        of the k largest logits, the largest first); and labels, or None.
    """
    with jacobians as runner:
        device = next(runner.model.parameters()).device
        for batch in tqdm(loader, desc=description, unit="batch", disable=description is None):
            inputs, labels = split_labels(batch, device)
            logits = runner.forward(inputs)
            require_finite(logits, runner.model, partial(runner.run, inputs))
            contrasts = likelihood.contrasts(top_k or logits.shape[-1]).to(logits.device)
            cotangents = contrasts.expand(len(logits), -1, -1)
            if top_k is not None:
                index = logits.topk(top_k, dim=-1).indices[:, :, None].expand_as(cotangents)
                cotangents = contrasts.new_zeros(*logits.shape, top_k - 1).scatter(1, index, cotangents)
            collected = accumulator()
            runner.rows(cotangents, partial(_collect, collected))
            yield logits.detach(), contrasts @ collected.covariance() @ contrasts.T, labels


def _collect(accumulator: CovarianceAccumulator, gradient: SiteGradient) -> None:
    accumulator.add(gradient.index, gradient.row, gradient.jacobian())
