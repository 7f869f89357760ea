"""A readout and its likelihood: Gaussian outputs to a predictive, and which readouts may share a posterior."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from laplace_lora.adapters import Site
from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature import row_numbers
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.likelihoods import Likelihood, likelihood_of
from laplace_lora.predictive import Predictive, of_options
from laplace_lora.readouts import ClassLogits, Readout, has_one_output, readout_of_data, split_labels


@dataclasses.dataclass(frozen=True)
class Reader:
    """A readout with the likelihood that its outputs have.

    Attributes:
        readout: How outputs are read from the model.
        likelihood: Their likelihood.
        config: Settings.
    """

    readout: Readout
    likelihood: Likelihood
    config: LaplaceConfig

    @classmethod
    def of(cls, readout: Readout, model: nn.Module, config: LaplaceConfig) -> "Reader":
        """Check that a model can be read this way.

        Args:
            readout: The readout.
            model: The PEFT model.
            config: Settings.

        Returns:
            The reader.
        """
        readout.check_model(model)
        return cls(readout, likelihood_of(readout.likelihood, config), config)

    @property
    def has_noise(self) -> bool:
        """Whether outputs are real numbers, observed with Gaussian noise."""
        return not self.likelihood.shift_invariant and self.readout.likelihood != "tokens"

    def predictive(
        self,
        mean: Tensor,
        covariance: Tensor,
        noise_variance: float | None,
        temperature: float = 1.0,
        keeps_answers: bool = False,
    ) -> Predictive:
        """Turn Gaussian outputs into a predictive distribution.

        Args:
            mean: (B, K) outputs.
            covariance: (B, K, K) their covariance, or (B, k, k) of the k largest logits.
            noise_variance: Of what is observed of real outputs; None where they are not observed by themselves.
            temperature: Divides the mean logits of classes.
            keeps_answers: Whether the classes' order is to be that of their mean logits.

        Returns:
            The predictive.
        """
        if self.readout.likelihood == "tokens":
            return Predictive.of_outputs(mean, covariance)
        if not self.likelihood.shift_invariant:
            return Predictive.of_outputs(mean, covariance, noise_variance)
        rule, points = self.config.predictive, self.config.integration_points
        if covariance.shape[-1] < mean.shape[-1]:
            return Predictive.of_top_classes(mean, covariance, rule, points, temperature, keeps_answers)
        return of_options(mean, covariance, rule, points, temperature, keeps_answers)

    def require_compatible(self, other: Readout, model: nn.Module, sites: Sequence[Site]) -> None:
        """Refuse a readout that makes nothing of this model, or reads what the posterior does not cover.

        Args:
            other: Another readout of the same model.
            model: The PEFT model.
            sites: The posterior's weight matrices.

        Raises:
            LaplaceLoRAError: It is a softmax over one output, or reads other rows of the output embeddings.
        """
        if isinstance(other, ClassLogits) and self.config.likelihood == "categorical" and has_one_output(model):
            raise LaplaceLoRAError(f"{other!r} would be a softmax over the model's one output; use Scalar().")
        mine, its = ([] if r.head_rows is None else r.head_rows.tolist() for r in (self.readout, other))
        if mine != its and any(site.at_head for site in sites):
            raise LaplaceLoRAError(
                f"the posterior covers the output embeddings as {self.readout!r} reads them, and {other!r} reads other "
                "rows; fit with that readout."
            )

    def require_validation(self, folds: bool = False) -> None:
        """Refuse outputs that held-out data say nothing of a prior by.

        Args:
            folds: Whether the data are folds, with an adapter each.

        Raises:
            LaplaceLoRAError: They are neither classes nor one real number; or folds, and no classes.
        """
        if folds and self.readout.tunes_noise:
            raise LaplaceLoRAError(
                "cross-fitting is for classes; give held-out rows: tune_prior('validation', loader), on the command "
                "line --validation, or use the evidence."
            )
        if not (self.likelihood.shift_invariant or self.readout.tunes_noise):
            raise LaplaceLoRAError(
                "validation tuning needs classes; use the evidence: tune_prior('evidence'), on the command line "
                "without --validation."
            )

    def require_top_k(self, top_k: int | None, classes: int) -> None:
        """Refuse a number of classes that cannot be varied by themselves.

        Args:
            top_k: Their number; None for all.
            classes: K.

        Raises:
            LaplaceLoRAError: It is out of range, or saves nothing.
        """
        if top_k is None:
            return
        if not self.likelihood.shift_invariant:
            raise LaplaceLoRAError(f"top_k={top_k} is for classes, and {self.readout!r} reads none; leave it out.")
        if self.readout.separate:
            raise LaplaceLoRAError(
                f"top_k={top_k} saves nothing with {self.readout!r}, where one backward pass serves all options; leave "
                "it out."
            )
        if not 2 <= top_k <= classes:
            raise LaplaceLoRAError(f"top_k={top_k} is out of range; give a number from 2 to the {classes} classes.")


class Peeked:
    """A loader whose first batch has been looked at. It can be read once."""

    def __init__(self, model: nn.Module, loader: Iterable[Mapping[str, Any]], known: Readout | None = None) -> None:
        """Read the first batch and infer the readout from it.

        Args:
            model: The PEFT model.
            loader: The batches.
            known: What an earlier fit was read by, for batches that leave it open.

        Raises:
            LaplaceLoRAError: There is none, or it can be read in several ways.
        """
        rest = iter(loader)
        first = next(rest, None)
        if first is None:
            raise LaplaceLoRAError("the loader gave no batch; check the data, or make a new generator for every fit.")
        inputs, labels = split_labels(first, torch.device("cpu"))
        try:
            self.readout = readout_of_data(model, inputs, labels)
        except LaplaceLoRAError:
            if known is None:
                raise
            self.readout = known
        self._batches = itertools.chain([first], rest)
        self._loader = loader
        self.dataset = getattr(loader, "dataset", None)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Yield all batches."""
        return self._batches

    def __len__(self) -> int:
        """Return the number of batches, where the loader says so."""
        return len(self._loader)  # type: ignore[arg-type]  # a TypeError where it does not, as for any loader


class Noted:
    """Batches on their way to the model, whose inputs are noted."""

    def __init__(self, loader: Iterable[Mapping[str, Any]], readout: Readout) -> None:
        """Note nothing yet.

        Args:
            loader: Batches.
            readout: How the model is read.
        """
        self._loader = loader
        self._readout = readout
        self._numbers: list[Tensor] = []

    def __len__(self) -> int:
        """Return the number of batches, where the loader knows it."""
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Yield the batches in order."""
        for batch in self._loader:
            self._numbers.append(row_numbers(self._readout.rows(*split_labels(batch, torch.device("cpu")))))
            yield batch

    @property
    def inputs(self) -> Tensor:
        """(n,) int64 numbers that the inputs so far are known by again, in ascending order."""
        return torch.cat([torch.zeros(0, dtype=torch.int64), *self._numbers]).sort().values
