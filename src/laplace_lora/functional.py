"""The posterior over functions: Gaussian logits of every example of a loader, by linearising the model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor
from tqdm import tqdm

from laplace_lora.jacobians import HeadPass, JacobianPass, MatrixGradient
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

    Each batch takes one forward pass and one backward pass per contrast of the logits (none for a head, one where
    every option has a row of its own).

    Args:
        jacobians: The model, to be prepared for Jacobian passes.
        loader: Batches, read once.
        likelihood: Says which contrasts of the logits matter.
        accumulator: Makes an empty accumulator of the posterior, for S scales of the prior.
        description: Label of the progress bar; None for no bar.
        top_k: Let only so many logits of every example vary, the largest ones; all, in their own order, if not given.

    Yields:
        Logits (B, K); covariances C (J P^-1 J^T) C^T (S, B, K, K), J the Jacobian of the contrasts C (or (S, B, k, k)
        of the k largest logits, the largest first; or of the options themselves, 0 for absent ones, whose logits are
        -inf); and labels, or None.
    """
    with jacobians as runner:
        device = next(runner.model.parameters()).device
        for batch in tqdm(loader, desc=description, unit="batch", disable=description is None):
            inputs, given = split_labels(batch, device)
            rows = runner.readout.rows(inputs, given)
            labels = runner.readout.labels(rows, given)
            logits = runner.forward(rows).logits
            collected = accumulator()
            receive = partial(_collect, collected)
            if rows.places is not None:
                runner.rows(None, receive)
                yield logits, collected.covariance(), labels
                continue
            varying = min(top_k or logits.shape[-1], logits.shape[-1])
            contrasts = likelihood.contrasts(varying).to(logits.device)
            cotangents = contrasts.expand(len(logits), -1, -1)
            if varying < logits.shape[-1]:
                index = logits.topk(varying, dim=-1).indices[:, :, None].expand_as(cotangents)
                cotangents = contrasts.new_zeros(*logits.shape, varying - 1).scatter(1, index, cotangents)
            runner.rows(cotangents, receive)
            yield logits, contrasts @ collected.covariance() @ contrasts.T, labels


def _collect(accumulator: CovarianceAccumulator, gradient: MatrixGradient) -> None:
    accumulator.add(gradient.index, gradient.row, gradient.jacobian())
