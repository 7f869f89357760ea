"""The posterior over functions: Gaussian logits of every example of a loader, by linearising the model."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from laplace_lora.adapters import Site
from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature import head_only
from laplace_lora.jacobians import HeadPass, JacobianPass, MatrixGradient, jacobian_pass
from laplace_lora.joint_rows import JointRows
from laplace_lora.likelihoods import Likelihood
from laplace_lora.posterior import CovarianceAccumulator, Posterior, Spectrum
from laplace_lora.predictive import JointPredictive, Predictive, concatenate
from laplace_lora.prior import collect
from laplace_lora.reading import Reader
from laplace_lora.readouts import split_labels


@dataclasses.dataclass(frozen=True)
class LinearisedModel:
    """A model with a Gaussian over its weights.

    Attributes:
        model: The PEFT model.
        sites: Its weight matrices.
        posterior: The Gaussian, without its prior.
        precision: (G,) prior precisions at which the posterior is evaluated.
        scale: What its covariance is multiplied by; see :mod:`laplace_lora.prior.noise`.
        config: Settings.
        temperature: Divides the mean logits of classes.
        keeps_answers: Whether the classes' order is to be that of their mean logits.
    """

    model: nn.Module
    sites: Sequence[Site]
    posterior: Posterior
    precision: Tensor
    scale: float
    config: LaplaceConfig
    temperature: float = 1.0
    keeps_answers: bool = False

    def covariances(
        self,
        loader: Iterable[Mapping[str, Any]],
        reader: Reader,
        description: str | None,
        scales: Tensor | None = None,
        top_k: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield Gaussian outputs batch by batch; see :func:`functional_covariances`.

        Args:
            loader: Batches, read once.
            reader: How outputs are read.
            description: Label of the progress bar; None for no bar.
            scales: (S,) multiples of the prior; one, 1.0, if not given.
            top_k: Let only so many logits of every example vary.

        Yields:
            Logits (B, K), covariances (S, B, K, K) and labels.
        """
        accumulator = partial(self.posterior.accumulator, self.precision, scales)
        runner = jacobian_pass(self.model, self.sites, reader.readout, head_only=head_only(self.config, reader.readout))
        shared = self.posterior.shared_bytes(self.config.memory_limit_bytes)
        found = functional_covariances(runner, loader, reader.likelihood, accumulator, description, top_k, shared)
        for logits, covariance, labels in found:
            yield logits, covariance * self.scale, labels

    def spectrum(
        self, loader: Iterable[Mapping[str, Any]], reader: Reader, description: str | None
    ) -> tuple[Tensor, Spectrum, Tensor]:
        """Collect labelled examples' Gaussian logits at every prior, in one pass over them.

        Args:
            loader: Labelled batches, read once.
            reader: How outputs are read.
            description: Label of the progress bar; None for no bar.

        Returns:
            (N, K) logits, their spectrum in float32 (4 G n K^2 bytes per example for n nodes and G prior groups), and
            (N,) labels.
        """
        grid = self.posterior.grid()
        accumulator = partial(self.posterior.spectral_accumulator, grid)
        runner = jacobian_pass(self.model, self.sites, reader.readout, head_only=head_only(self.config, reader.readout))
        shared = self.posterior.shared_bytes(self.config.memory_limit_bytes)
        found = functional_covariances(runner, loader, reader.likelihood, accumulator, description, None, shared)
        shorter = ((logits, table.float(), labels) for logits, table, labels in found)
        mean, tables, labels = collect(shorter, reader.likelihood, self.config.memory_limit_bytes)
        nodes = grid.nodes.to(tables.device)
        return mean, Spectrum(nodes, tables.unflatten(0, (-1, len(nodes))), self.scale), labels

    def predict(
        self,
        loader: Iterable[Mapping[str, Any]],
        reader: Reader,
        description: str | None,
        noise_variance: float | None,
        top_k: int | None = None,
    ) -> Predictive:
        """Predict every batch.

        Args:
            loader: Batches, read once.
            reader: How outputs are read.
            description: Label of the progress bar; None for no bar.
            noise_variance: Of what is observed of real outputs; None where they are not.
            top_k: Let only so many logits of every example vary.

        Returns:
            All examples, in order.
        """
        found = self.covariances(loader, reader, description, None, top_k)
        settings = noise_variance, self.temperature, self.keeps_answers
        return concatenate([reader.predictive(logits, spread[0], *settings) for logits, spread, _ in found])

    def predict_jointly(
        self,
        loader: Iterable[Mapping[str, Any]],
        reader: Reader,
        description: str | None,
        noise_variance: float | None,
    ) -> JointPredictive:
        """Predict all examples of a loader as one Gaussian.

        Args:
            loader: Batches, read once.
            reader: How outputs are read.
            description: Label of the progress bar; None for no bar.
            noise_variance: Of what is observed of real outputs; None where they are not.

        Returns:
            All examples, in order.
        """
        runner = jacobian_pass(self.model, self.sites, reader.readout, head_only=head_only(self.config, reader.readout))
        rows = JointRows(self.config.memory_limit_bytes)
        with runner as prepared:
            device = next(prepared.model.parameters()).device
            for batch in tqdm(loader, desc=description, unit="batch", disable=description is None):
                with torch.inference_mode(False):
                    logits, contrasts, _ = _passes(prepared, batch, reader.likelihood, rows.receive, device, None)
                rows.end_batch(logits, contrasts)
        mean, covariance = rows.covariance(self.posterior.accumulator(self.precision))
        return JointPredictive(mean, covariance * self.scale, noise_variance, self.temperature, self.keeps_answers)


def functional_covariances(
    jacobians: AbstractContextManager[JacobianPass | HeadPass],
    loader: Iterable[Mapping[str, Any]],
    likelihood: Likelihood,
    accumulator: Callable[[], CovarianceAccumulator],
    description: str | None,
    top_k: int | None = None,
    shared_bytes: int = 0,
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
        shared_bytes: Batches wait for others while their accumulators hold no more than so many bytes, and are then
            ended together; 0 for every batch by itself.

    Yields:
        Logits (B, K); covariances C (J P^-1 J^T) C^T (S, B, K, K), J the Jacobian of the contrasts C (or (S, B, k, k)
        of the k largest logits, the largest first; or of the options themselves, 0 for absent ones, whose logits are
        -inf); and labels, or None.
    """
    with jacobians as runner:
        device = next(runner.model.parameters()).device
        waiting: list[_Waiting] = []
        for batch in tqdm(loader, desc=description, unit="batch", disable=description is None):
            # Not held while others run: a mode that is left later than it was entered would stay switched.
            with torch.inference_mode(False):
                waiting.append(_of_batch(runner, batch, likelihood, accumulator(), device, top_k))
                held = [each.collected.nbytes for each in waiting]
                # No more than that, if the next batch is as large.
                full = not shared_bytes or sum(held) + held[-1] > shared_bytes
                ended = _ended(waiting) if full else []
            waiting = [] if ended else waiting
            yield from ended
        if waiting:
            with torch.inference_mode(False):
                ended = _ended(waiting)
            yield from ended


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A batch whose passes are done: its logits and labels, its Jacobians, and the contrasts (K, M) they are of."""

    logits: Tensor
    labels: Tensor | None
    collected: CovarianceAccumulator
    contrasts: Tensor | None


def _of_batch(
    runner: JacobianPass | HeadPass,
    batch: Mapping[str, Any],
    likelihood: Likelihood,
    collected: CovarianceAccumulator,
    device: torch.device,
    top_k: int | None,
) -> _Waiting:
    receive = partial(_collect, collected)
    logits, contrasts, labels = _passes(runner, batch, likelihood, receive, device, top_k)
    return _Waiting(logits, labels, collected, contrasts)


def _passes(
    runner: JacobianPass | HeadPass,
    batch: Mapping[str, Any],
    likelihood: Likelihood,
    receive: Callable[[MatrixGradient], None],
    device: torch.device,
    top_k: int | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run one batch; return its logits, the contrasts whose Jacobians were handed on (None: options'), and labels."""
    inputs, given = split_labels(batch, device)
    rows = runner.readout.rows(inputs, given)
    labels = runner.readout.labels(rows, given)
    logits = runner.forward(rows).logits
    if rows.places is not None:
        runner.rows(None, receive)
        return logits, None, labels
    varying = min(top_k or logits.shape[-1], logits.shape[-1])
    contrasts = likelihood.contrasts(varying).to(logits.device)
    cotangents = contrasts.expand(len(logits), -1, -1)
    if varying < logits.shape[-1]:
        index = logits.topk(varying, dim=-1).indices[:, :, None].expand_as(cotangents)
        cotangents = contrasts.new_zeros(*logits.shape, varying - 1).scatter(1, index, cotangents)
    runner.rows(cotangents, receive)
    return logits, contrasts, labels


def _ended(batches: Sequence[_Waiting]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Return logits, covariances and labels of batches, ended together."""
    collected = [each.collected for each in batches]
    # Products of Jacobians are not to be rounded by an autocast that is meant for the model.
    with torch.autocast(batches[0].logits.device.type, enabled=False):
        found = type(collected[0]).covariances(collected)
    ended = []
    for each, covariance in zip(batches, found, strict=True):
        spread = covariance.to(each.logits.device)
        if each.contrasts is not None:
            spread = each.contrasts @ spread @ each.contrasts.T
        ended.append((each.logits, spread, each.labels))
    return ended


def _collect(accumulator: CovarianceAccumulator, gradient: MatrixGradient) -> None:
    accumulator.add(gradient.index, gradient.row, gradient.jacobian())
