"""A fitted posterior with its prior: what it says of the data, of weights and of itself, and how it is saved."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laplace_lora import prior as priors
from laplace_lora import tuning
from laplace_lora.adapters import perturbed_state_dicts
from laplace_lora.config import LaplaceConfig, Score, TunedBy
from laplace_lora.covered import Covered
from laplace_lora.curvature import FitResult, TrainCheckExamples
from laplace_lora.errors import NotFittedError
from laplace_lora.functional import LinearisedModel
from laplace_lora.persistence import TRAINING_INPUTS, TUNING_INPUTS, InputFormat, describe, write_posterior
from laplace_lora.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A Gaussian over an adapter's weights, at one prior and noise; others are copies.

    Attributes:
        covered: The weights it is about, and how the model is read.
        config: Settings.
        posterior: The Gaussian, without its prior.
        training: What the pass over the training data left.
        precision: (G,) prior precisions in use, in 1 / weight^2.
        noise: Noise variance in use, of a Gaussian likelihood.
        tuned_by: ``auto``, ``evidence``, ``validation``, ``cross_fit`` or None.
        check: Training examples on which evidence tuning compares predictions.
        temperature: Divides the mean logits of classes.
        keeps_answers: Whether the classes' order in predictions is that of their mean logits.
        centre: Where the prior's mean is: (G,) squared distances |theta - theta_0|^2 from the starting point, or None
            for zero.
        raised: Factor by which ``auto`` has raised the evidence's precisions.
    """

    covered: Covered
    config: LaplaceConfig
    posterior: Posterior
    training: FitResult
    precision: Tensor
    noise: float
    tuned_by: TunedBy | None = None
    check: TrainCheckExamples | None = None
    temperature: float = 1.0
    keeps_answers: bool = False
    centre: Tensor | None = None
    raised: float = 1.0

    @property
    def noise_variance(self) -> float | None:
        """Noise variance in use; None where the likelihood has none."""
        return self.noise if self.covered.reader.has_noise else None

    @property
    def tuned_noise(self) -> float | None:
        """Noise variance in use, where it is tuned with the prior; else None."""
        return self.noise if self.covered.reader.readout.tunes_noise else None

    @property
    def squared_distances(self) -> Tensor:
        """(G,) |theta - theta_0|^2 of every prior group, theta_0 the prior's mean."""
        return self.covered.squared_norms() if self.centre is None else self.centre

    @property
    def noise_scale(self) -> float:
        """Noise variance in use over that at which the curvature was collected; see :mod:`laplace_lora.prior.noise`."""
        return self.noise / self.config.noise_variance

    @property
    def tail_check(self) -> priors.TailCheck | None:
        """Effective number of parameters with and without the tails of sketched factors; None where there are none."""
        return priors.TailCheck.of(self.posterior, self.precision * self.noise_scale)

    @property
    def tail_warning(self) -> str | None:
        """What there is to say of too small a rank, or of rows too coarse for the prior; or None."""
        check = self.tail_check
        if check is None:
            return self.posterior.storage_warning(self.precision * self.noise_scale)
        return check.warning(self.config.sketch_rank, self.config.rank)

    def require_labels(self) -> None:
        """Refuse data without labels, which have no evidence.

        Raises:
            NotFittedError: The training batches had none.
        """
        if self.training.log_likelihood is None:
            raise NotFittedError("the training batches had no labels, so there is no evidence; fit with labels.")

    def log_marginal_likelihood(self) -> float:
        """Return the evidence log p(D) at the prior in use, in nats."""
        self.require_labels()
        return tuning.log_marginal_likelihood(
            self.posterior,
            self.training,
            self.precision,
            self.squared_distances,
            self.config,
            self.noise_variance,
        )

    def linearised(self, model: nn.Module) -> LinearisedModel:
        """Put the Gaussian on the model.

        Args:
            model: The PEFT model.

        Returns:
            What predicts.
        """
        precision, scale = self.precision * self.noise_scale, self.noise_scale
        return LinearisedModel(
            model,
            self.covered.sites,
            self.posterior,
            precision,
            scale,
            self.config,
            self.temperature,
            self.keeps_answers,
        )

    def by_evidence(self, harmless: bool = False) -> tuple["Fitted", str | None]:
        """Choose prior and noise by the evidence, without any model pass.

        Args:
            harmless: Whether to raise the precisions where the adapter is not over-fitted.

        Returns:
            The posterior at them, and what the user should know.
        """
        self.require_labels()
        tuned = tuning.by_evidence(
            self.posterior,
            self.training,
            self.precision,
            self.squared_distances,
            self.config,
            self.noise,
            self.covered.reader.readout.tunes_noise,
            self.check,
            harmless,
        )
        return self._at(tuned, "auto" if harmless else "evidence"), tuned.warning

    def by_validation(
        self, model: nn.Module, loader: Iterable[Mapping[str, Any]], score: Score = "nll", tune_temperature: bool = True
    ) -> tuple["Fitted", str | None]:
        """Choose prior, and temperature or noise, on held-out data, in one pass over them.

        Args:
            model: The PEFT model.
            loader: Labelled batches.
            score: What is minimised; of classes.
            tune_temperature: Whether a temperature is chosen; of classes.

        Returns:
            The posterior at them, and what the user should know.
        """
        if self.covered.reader.readout.tunes_noise:
            found = self._at_scales(model, loader)
            # Held-out data are compared at the curvature's own noise variance; see prior.noise.
            precision = self.precision * self.noise_scale
            tuned = tuning.noise_by_validation(found[0], found[1], found[2], precision, self.config)
            return self._at(tuned, "validation"), tuned.warning
        held_out = self.held_out(model, loader, "validate")
        return self.by_held_out([held_out], "validation", score, tune_temperature)

    def by_held_out(
        self, folds: Sequence[priors.HeldOut], method: TunedBy, score: Score, tune_temperature: bool
    ) -> tuple["Fitted", str | None]:
        """Choose prior and temperature on held-out data of classes that are in memory, without any model pass.

        Args:
            folds: Held-out examples, of this adapter or of others trained alike, whose prior groups are the same.
            method: What is said to have chosen them.
            score: What is minimised.
            tune_temperature: Whether the temperature is chosen.

        Returns:
            The posterior at them, and what the user should know.
        """
        common = not self.posterior.has_spectrum
        tuned = tuning.by_held_out(folds, self.precision, self.noise, score, tune_temperature, common)
        return self._at(tuned, method), tuned.warning

    def held_out(
        self, model: nn.Module, loader: Iterable[Mapping[str, Any]], description: str = "held out"
    ) -> priors.HeldOut:
        """Collect held-out examples of classes at every prior, in one pass over them.

        Args:
            model: The PEFT model.
            loader: Labelled batches.
            description: Label of the progress bar.

        Returns:
            The examples. Where the structure has no spectrum, at multiples of the precisions in use.
        """
        if not self.posterior.has_spectrum:
            mean, covariances, labels = self._at_scales(model, loader)
            return priors.HeldOut(mean, priors.AtScales(covariances), labels)
        shown = description if self.config.progress else None
        mean, spectrum, labels = self.linearised(model).spectrum(loader, self.covered.reader, shown)
        return priors.HeldOut(mean, spectrum, labels)

    def _at_scales(self, model: nn.Module, loader: Iterable[Mapping[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
        reader, description = self.covered.reader, "validate" if self.config.progress else None
        found = self.linearised(model).covariances(loader, reader, description, priors.SCALES)
        mean, covariances, labels = priors.collect(found, reader.likelihood, self.config.memory_limit_bytes)
        return mean, covariances.div_(self.noise_scale), labels

    def _at(self, tuned: tuning.Tuned, method: TunedBy) -> "Fitted":
        return dataclasses.replace(
            self,
            precision=tuned.precision,
            noise=tuned.noise_variance,
            temperature=tuned.temperature,
            keeps_answers=tuned.keeps_answers,
            raised=tuned.raised,
            tuned_by=method,
        )

    def with_tuned_on(self, inputs: Tensor | None) -> "Fitted":
        """Note what was tuned on.

        Args:
            inputs: (n,) numbers that held-out inputs are known by again; None where there were none.

        Returns:
            The same, with it.
        """
        return dataclasses.replace(self, training=dataclasses.replace(self.training, tuned_on=inputs))

    def sample(self, model: nn.Module, count: int, seed: int) -> list[dict[str, Tensor]]:
        """Draw adapters.

        Args:
            model: The PEFT model.
            count: How many.
            seed: Fixes the draw.

        Returns:
            State dicts under PEFT's keys.
        """
        generator = torch.Generator().manual_seed(seed)
        deviations = self.posterior.sample(self.precision * self.noise_scale, count, generator)
        spread = self.noise_scale**0.5
        adapter = self.covered.adapter.adapter
        return perturbed_state_dicts(model, adapter, self.covered.sites, [spread * each for each in deviations])

    def summary(self) -> str:
        """Say in words what the posterior covers, what it does not, and how it was tuned."""
        return describe(
            self.config,
            self.covered.shapes,
            self.covered.adapter.held_at_map,
            self.precision,
            self.tuned_by,
            self.training,
            self.posterior,
            self.covered.reader.readout.name,
            self.tuned_noise,
            self.temperature,
            self.keeps_answers,
        )

    def save(self, model: nn.Module, input_format: InputFormat, directory: Path) -> None:
        """Write posterior_config.json and posterior.safetensors, whole or not at all.

        Args:
            model: The PEFT model.
            input_format: How inputs are made.
            directory: Where to; its other files are not touched.
        """
        state = self.covered.saved_state(
            model,
            self.config,
            input_format,
            self.precision.tolist(),
            self.tuned_by,
            self.tuned_noise,
            self.training,
            self.tail_check,
            self.temperature,
            self.centre,
            self.keeps_answers,
        )
        tensors = {**self.posterior.tensors(), TRAINING_INPUTS: self.training.inputs}
        if self.training.tuned_on is not None:
            tensors[TUNING_INPUTS] = self.training.tuned_on
        write_posterior(directory, state.to_description(), tensors)
