"""What is logged of a fit: its evidence, and held-out data before and after."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.metrics import ece, nll
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.predictive import Predictive
from laplace_lora.readouts import NextToken, split_labels

Batch = Mapping[str, Any]


@dataclasses.dataclass
class Counted:
    """A loader whose batches are counted.

    Attributes:
        loader: Batches.
        batches: How many have been read.
    """

    loader: Iterable[Batch]
    batches: int = 0

    @property
    def dataset(self) -> Any:
        """The loader's data set, or None."""
        return getattr(self.loader, "dataset", None)

    def __len__(self) -> int:
        """Return the number of batches.

        Raises:
            TypeError: The loader does not know it.
        """
        if not isinstance(self.loader, Sized):
            raise TypeError("the loader has no length")
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches."""
        for batch in self.loader:
            self.batches += 1
            yield batch


class Labelled(Counted):
    """A loader that keeps the labels which pass, and how many tokens of a text are labelled."""

    def __init__(self, loader: Iterable[Batch], la: LaplaceLoRA) -> None:
        """Keep nothing yet.

        Args:
            loader: Batches.
            la: Fitted; its readout says what labels are.
        """
        super().__init__(loader)
        self._readout = la.readout
        self._labels: list[Tensor] = []
        self._targets: list[Tensor] = []

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches."""
        for batch in super().__iter__():
            inputs, given = split_labels(batch, torch.device("cpu"))
            rows = self._readout.rows(inputs, given)
            labels = self._readout.labels(rows, given)
            if isinstance(self._readout, NextToken):
                assert rows.targets is not None
                self._targets.append(rows.targets.mask.sum(dim=1))
            elif labels is not None:
                self._labels.append(labels)
            yield batch

    def labels(self, examples: int) -> Tensor:
        """Return all labels.

        Args:
            examples: Number of examples that there were.

        Returns:
            (N,) or (N, K).

        Raises:
            LaplaceLoRAError: Some are missing.
        """
        if sum(map(len, self._labels)) != examples:
            raise LaplaceLoRAError(
                "the evaluation data have no labels, so there is no NLL; give labels, or leave the evaluation set out."
            )
        return torch.cat(self._labels)

    def targets(self) -> Tensor:
        """Return the number of labelled tokens of every text, (N,)."""
        return torch.cat(self._targets)


def fit_measures(la: LaplaceLoRA) -> dict[str, float]:
    """Say what the training data tell.

    Args:
        la: Fitted.

    Returns:
        ``log_evidence`` (nats; absent without labels), ``effective_parameters`` and ``prior_precision`` (of several
        groups the geometric mean), and ``noise_variance`` of real outputs.
    """
    measures = {}
    if la.training is not None and la.training.log_likelihood is not None:
        measures["log_evidence"] = la.log_marginal_likelihood()
    precision = la.prior_precision
    values = torch.tensor(list(precision.values()) if isinstance(precision, dict) else [precision], dtype=torch.float64)
    noise = la.noise_variance
    # The curvature is that of the configured noise; the posterior knows precisions relative to it.
    scale = 1.0 if noise is None else noise / la.config.noise_variance
    measures["effective_parameters"] = float(la.posterior.effective_parameters(values * scale).sum())
    measures["prior_precision"] = float(values.log().mean().exp())
    if noise is not None:
        measures["noise_variance"] = noise
    return measures


def evaluation_measures(la: LaplaceLoRA, loader: Iterable[Batch], prefix: str) -> tuple[dict[str, float], int]:
    """Measure held-out data before (``_map``, the trained adapter alone) and after (the posterior's predictive).

    With classes, options and preferences: ``nll_map``, ``nll`` (nats per example), ``ece_map`` and ``ece``. With real
    outputs: ``nll_map`` of the Gaussian with the noise variance alone, ``nll`` with the posterior's variance added, at
    the same noise. With ``NextToken``: ``nll_map``, nats per labelled token of the trained adapter, and
    ``log_prob_std``, the mean over texts of the standard deviation of a text's log-probability under the posterior, in
    nats; there is no ``nll``, as no predictive distribution over tokens is computed.

    Args:
        la: Fitted.
        loader: Labelled batches.
        prefix: What names begin with.

    Returns:
        Names to numbers, and the number of batches.
    """
    labelled = Labelled(loader, la)
    prediction = la.predict_dataset(labelled).to("cpu")
    if isinstance(la.readout, NextToken):
        measures = _token_measures(prediction, labelled.targets())
    elif la.noise_variance is not None:
        measures = _gaussian_measures(prediction, labelled.labels(len(prediction)), la.noise_variance)
    else:
        truth = labelled.labels(len(prediction)).numpy()
        measures = {}
        for name, p in (("_map", prediction.map_probabilities), ("", prediction.probabilities)):
            measures[f"nll{name}"] = nll(p.numpy(), truth)
            measures[f"ece{name}"] = ece(p.numpy(), truth)
    return {f"{prefix}_{name}": value for name, value in measures.items()}, labelled.batches


def _gaussian_measures(prediction: Predictive, labels: Tensor, noise: float) -> dict[str, float]:
    residuals = labels.reshape(prediction.mean.shape).double() - prediction.mean
    outputs = residuals.shape[1]
    constant = outputs * math.log(2.0 * math.pi)
    alone = 0.5 * (residuals.square().sum(dim=1) / noise + constant + outputs * math.log(noise))
    total = prediction.covariance + noise * torch.eye(outputs, dtype=torch.float64)
    distance = (residuals * torch.linalg.solve(total, residuals[..., None])[..., 0]).sum(dim=1)
    spread = 0.5 * (distance + constant + torch.linalg.slogdet(total).logabsdet)
    return {"nll_map": float(alone.mean()), "nll": float(spread.mean())}


def _token_measures(prediction: Predictive, targets: Tensor) -> dict[str, float]:
    return {
        "nll_map": float(-prediction.mean.sum() / targets.sum()),
        "log_prob_std": float(prediction.covariance[:, 0, 0].clamp(min=0.0).sqrt().mean()),
    }
