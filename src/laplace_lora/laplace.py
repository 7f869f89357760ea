"""LaplaceLoRA: the estimator that turns a trained adapter into a posterior and a posterior into predictions."""

import dataclasses
import functools
import importlib.metadata
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from laplace_lora import prior as priors
from laplace_lora.adapters import discover_sites, fingerprint, perturbed_state_dict
from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature import FitResult, TrainCheckExamples, fit_curvature, require_finite_statistics
from laplace_lora.errors import LaplaceLoRAError, NotFittedError
from laplace_lora.functional import functional_covariances
from laplace_lora.jacobians import jacobian_pass
from laplace_lora.likelihoods import Categorical, Gaussian, Likelihood
from laplace_lora.matrices import Groups, MatrixShape
from laplace_lora.persistence import (
    TRAINING_INPUTS,
    InputFormat,
    SavedState,
    describe,
    read_posterior,
    write_posterior,
)
from laplace_lora.posterior import Posterior
from laplace_lora.predictive import Predictive
from laplace_lora.readouts import READOUTS, ClassLogits, Readout, label_names_of, split_labels
from laplace_lora.structures import STRUCTURES, choose_sites

Batch = Mapping[str, Any]

# Points of the integral where only a mean over examples is wanted: errors of 1e-3 per example do not matter.
CHECK_POINTS = 512


class LaplaceLoRA:
    """A Laplace approximation over the weights of a trained LoRA adapter (Yang et al., ICLR 2024).

    The posterior is N(theta*, P^-1): theta* the trained weights, P the generalised Gauss-Newton matrix of
    the training data plus the prior's precision. Predictions linearise the model around theta*: Gaussian
    logits of mean f(x) and covariance J P^-1 J^T, averaged through the softmax. The model is run, never
    changed.

    Example:
        >>> la = LaplaceLoRA(model, LaplaceConfig(structure="kron"))     # doctest: +SKIP
        >>> la.fit(train_loader).tune_prior("evidence")                  # doctest: +SKIP
        >>> la.predict(batch).probabilities                              # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        config: LaplaceConfig | None = None,
        readout: Readout | None = None,
        input_format: InputFormat | None = None,
    ) -> None:
        """Find the adapter's weights and refuse by name what cannot be handled.

        Args:
            model: A ``peft.PeftModel`` with one active LoRA adapter.
            config: Settings; the defaults of :class:`LaplaceConfig` if not given.
            readout: How logits are read from the model; :class:`ClassLogits` if not given.
            input_format: How inputs are made from text; kept and saved, not used in any computation.
        """
        self.model = model
        self.config = config or LaplaceConfig()
        self.readout = readout or ClassLogits()
        self.input_format = input_format or InputFormat(label_names=label_names_of(model))
        self.readout.check_model(model)
        self._structure = STRUCTURES[self.config.structure]
        self._adapter = choose_sites(discover_sites(model, self.config.include_modules_to_save), self.config)
        self._shapes = tuple(
            MatrixShape(site.name, site.module, site.out_features, site.in_features, site.trained_in_full)
            for site in self._adapter.sites
        )
        self._likelihood: Likelihood = (
            Categorical() if self.config.likelihood == "categorical" else Gaussian(self.config.noise_variance)
        )
        self._groups = Groups.of(self._shapes, self.config.prior_groups)
        self._precision = self._groups.precisions(self.config.prior_precision)
        self._tuned_by: str | None = None
        self._posterior: Posterior | None = None
        self._fit: FitResult | None = None
        self._check: TrainCheckExamples | None = None

    @property
    def posterior(self) -> Posterior:
        """The fitted Gaussian, without its prior.

        Raises:
            NotFittedError: ``fit`` has not run.
        """
        if self._posterior is None:
            raise NotFittedError("the posterior is not fitted; call fit(loader) first.")
        return self._posterior

    @property
    def prior_precision(self) -> float | dict[str, float]:
        """Prior precision in use, in 1 / weight^2: a float, or one per group name."""
        values = self._precision.tolist()
        if self.config.prior_groups == "global":
            return float(values[0])
        return dict(zip(self._groups.names, values, strict=True))

    @property
    def train_accuracy(self) -> float | None:
        """Accuracy of the trained adapter on the training data, or None without labels or before ``fit``."""
        return None if self._fit is None else self._fit.accuracy

    @property
    def training(self) -> FitResult | None:
        """What the pass over the training data found: N, K, the trained adapter's NLL and accuracy; None before it."""
        return self._fit

    def fit(self, loader: Iterable[Batch]) -> "LaplaceLoRA":
        """Collect the curvature of the training data in one pass.

        The loader is read once. Each batch takes one forward pass and K-1 backward passes to the LoRA
        weights, or one with a one-pass Fisher, or none with ``last_layer``. Labels are not needed for the
        posterior; without them there is no evidence. Fitting again starts anew, from the configured prior.

        Args:
            loader: Batches as Hugging Face collators make them: names to tensors.

        Returns:
            Itself.
        """
        self._posterior, self._fit, self._check = None, None, None
        curvature = self._structure.curvature(self._shapes, self.config)
        result, check, padding_side = fit_curvature(
            self.model, self._adapter.sites, curvature, self.config, self.readout, self._likelihood, loader
        )
        statistics = curvature.finalise()
        require_finite_statistics(statistics, self._shapes)
        posterior = self._structure.posterior.from_statistics(self._shapes, statistics, curvature.dtype)
        posterior.assign_groups(self._groups.index)
        self._posterior, self._fit, self._check = posterior, result, check
        self._precision = self._groups.precisions(self.config.prior_precision)
        self._tuned_by = None
        if self.input_format.padding_side is None:
            self.input_format = dataclasses.replace(self.input_format, padding_side=padding_side)
        return self

    def tune_prior(
        self,
        method: Literal["evidence", "validation"] | tuple[str, Iterable[Batch]] = "evidence",
        loader: Iterable[Batch] | None = None,
    ) -> "LaplaceLoRA":
        """Choose the prior precision.

        ``evidence`` maximises the log marginal likelihood by a fixed point, without any model pass.
        ``validation`` minimises the negative log-likelihood of held-out data over a common factor on
        all groups' precisions, in one pass over them.

        Args:
            method: ``"evidence"``, ``"validation"``, or the pair ``("validation", loader)``.
            loader: Labelled validation batches, for ``"validation"``.

        Returns:
            Itself.

        Raises:
            LaplaceLoRAError: The method is unknown or lacks its data.
        """
        if isinstance(method, tuple):
            method, loader = method[0], method[1]  # type: ignore[assignment]
        if method == "evidence" and loader is None:
            self._tune_by_evidence()
        elif method == "validation" and loader is not None:
            self._tune_by_validation(loader)
        else:
            raise LaplaceLoRAError(
                f"tune_prior({method!r}) with{'' if loader is not None else 'out'} a loader is not known; use "
                "tune_prior('evidence') or tune_prior('validation', loader)."
            )
        return self

    def predict(self, batch: Batch, top_k: int | None = None) -> Predictive:
        """Predict one batch; labels in it are ignored.

        Costs one forward pass and K-1 backward passes, none of them with ``last_layer``.

        Args:
            batch: Names to tensors, as for ``fit``.
            top_k: Vary only the logits of the trained adapter's k likeliest classes: k-1 backward passes. The
                others keep their probabilities, whose sum is the result's ``neglected_mass``.

        Returns:
            Probabilities and their uncertainty, float64, on the model's device.
        """
        return self._predict([batch], top_k, hide_progress=True)

    def predict_dataset(self, loader: Iterable[Batch], top_k: int | None = None) -> Predictive:
        """Predict every batch of a loader.

        Args:
            loader: Batches as for ``predict``.
            top_k: As for ``predict``.

        Returns:
            All examples in order.
        """
        return self._predict(loader, top_k, hide_progress=not self.config.progress)

    def seen_in_fit(self, batch: Batch) -> Tensor:
        """Say which inputs of a batch were among the training data, on which nothing should be evaluated.

        Args:
            batch: Names to tensors, as for ``fit``.

        Returns:
            (B,) bool.

        Raises:
            NotFittedError: ``fit`` has not run.
        """
        if self._fit is None:
            raise NotFittedError("the posterior is not fitted; call fit(loader) first.")
        return self._fit.seen(split_labels(batch, torch.device("cpu"))[0])

    def log_marginal_likelihood(self) -> float:
        """Return the evidence log p(D) of the Laplace approximation at the prior in use.

        Returns:
            The evidence of the training data, in nats.

        Raises:
            NotFittedError: ``fit`` has not run, or its data had no labels.
        """
        posterior, log_likelihood = self._labelled_fit()
        return priors.log_evidence(posterior, self._precision, self._squared_norms(), log_likelihood)

    def sample(self, n: int, seed: int = 0) -> list[dict[str, Tensor]]:
        """Draw adapters from the posterior.

        Args:
            n: How many.
            seed: Fixes the draw.

        Returns:
            State dicts under PEFT's keys, for ``peft.set_peft_model_state_dict``; weights outside the
            posterior keep their trained values.

        Raises:
            LaplaceLoRAError: ``n`` is not positive.
        """
        if n < 1:
            raise LaplaceLoRAError(f"cannot draw {n} adapters; give n of at least 1.")
        generator = torch.Generator().manual_seed(seed)
        deviations = self.posterior.sample(self._precision, n, generator)
        return [perturbed_state_dict(self.model, self._adapter, [d[i] for d in deviations]) for i in range(n)]

    def summary(self) -> str:
        """Say in words what the posterior covers, what it does not, and how it was tuned.

        Returns:
            Several lines of text.
        """
        return describe(
            self.config,
            self._shapes,
            self._adapter.held_at_map,
            self._precision,
            self._tuned_by,
            self._fit,
            self._posterior,
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write posterior_config.json and posterior.safetensors, whole or not at all.

        Args:
            directory: Usually the adapter's own; its other files are not touched.
        """
        posterior, fitted = self.posterior, self._fit
        assert fitted is not None
        state = SavedState(
            library_version=importlib.metadata.version("laplace-lora"),
            config=self.config,
            readout=self.readout.name,
            input_format=self.input_format,
            fingerprint=fingerprint(self.model, self._adapter),
            matrices=self._shapes,
            held_at_map=self._adapter.held_at_map,
            prior_precision=tuple(self._precision.tolist()),
            tuned_by=self._tuned_by,
            examples=fitted.examples,
            classes=fitted.classes,
            log_likelihood=fitted.log_likelihood,
            accuracy=fitted.accuracy,
        )
        tensors = {**posterior.tensors(), TRAINING_INPUTS: fitted.inputs}
        write_posterior(Path(directory), state.to_description(), tensors)

    @classmethod
    def from_pretrained(cls, model: nn.Module, directory: str | Path) -> "LaplaceLoRA":
        """Load a saved posterior onto the model it was fitted to.

        Args:
            model: The same base model with the same adapter; it may be loaded frozen.
            directory: A folder, or the id of a repository on the Hugging Face hub.

        Returns:
            The estimator, fitted.

        Raises:
            LaplaceLoRAError: Files are damaged or the model is another one; says what differs.
        """
        state, posterior, fitted = read_posterior(directory, next(model.parameters()).device)
        if state.readout not in READOUTS:
            raise LaplaceLoRAError(f"readout {state.readout!r} is not known here; install a newer laplace-lora.")
        la = cls(model, state.config, READOUTS[state.readout](), state.input_format)
        state.check_model(fingerprint(model, la._adapter), la._shapes)
        la._posterior, la._fit = posterior, fitted
        la._precision = torch.tensor(state.prior_precision, dtype=torch.float64)
        la._tuned_by = state.tuned_by
        return la

    def _labelled_fit(self) -> tuple[Posterior, float]:
        posterior = self.posterior
        if self._fit is None or self._fit.log_likelihood is None:
            raise NotFittedError("the training batches had no labels, so there is no evidence; fit with labels.")
        return posterior, self._fit.log_likelihood

    def _squared_norms(self) -> Tensor:
        return priors.squared_norms([site.weights() for site in self._adapter.sites], self._groups.index)

    def _covariances(
        self, loader: Iterable[Batch], scales: Tensor | None, description: str | None, top_k: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        posterior = self.posterior
        runner = jacobian_pass(
            self.model,
            self._adapter.sites,
            lambda batch: self.readout.logits(self.model, batch),
            last_layer=self._structure.last_layer,
        )
        accumulator = functools.partial(posterior.accumulator, self._precision, scales)
        return functional_covariances(runner, loader, self._likelihood, accumulator, description, top_k)

    def _predict(self, loader: Iterable[Batch], top_k: int | None, hide_progress: bool) -> Predictive:
        classes = self._fit.classes if self._fit is not None else 0
        if top_k is not None and not (self._likelihood.shift_invariant and 2 <= top_k <= classes):
            raise LaplaceLoRAError(f"top_k={top_k} is out of range; give a number from 2 to the {classes} classes.")
        parts = []
        for logits, covariance, _ in self._covariances(loader, None, None if hide_progress else "predict", top_k):
            if top_k is None:
                parts.append(self._predictive(logits, covariance[0]))
            else:
                rule, points = self.config.predictive, self.config.integration_points
                parts.append(Predictive.of_top_classes(logits, covariance[0], rule, points))
        return Predictive.concatenate(parts)

    def _predictive(self, mean: Tensor, covariance: Tensor) -> Predictive:
        if not self._likelihood.shift_invariant:
            return Predictive.of_outputs(mean, covariance)
        return Predictive.from_gaussian(mean, covariance, self.config.predictive, self.config.integration_points)

    def _tune_by_evidence(self) -> None:
        posterior, _ = self._labelled_fit()
        self._precision = priors.fixed_point(posterior, self._precision, self._squared_norms()).precision
        self._tuned_by = "evidence"
        if self._check is not None:
            fit = priors.training_fit(posterior, self._precision, self._check)
            points = max(CHECK_POINTS, 8 * fit.mean.shape[-1])
            predictive = Predictive.from_gaussian(fit.mean, fit.covariance, self.config.predictive, points)
            gamma = float(posterior.effective_parameters(self._precision).sum())
            warning = priors.training_warning(predictive, fit.labels, self._check.total, gamma)
            if warning:
                warnings.warn(warning, stacklevel=3)

    def _tune_by_validation(self, loader: Iterable[Batch]) -> None:
        if not self._likelihood.shift_invariant:
            raise LaplaceLoRAError("validation tuning needs classes; use tune_prior('evidence').")
        description = "validate" if self.config.progress else None
        mean, covariances, labels = priors.collect(
            self._covariances(loader, priors.SCALES, description), self._likelihood, self.config.memory_limit_bytes
        )
        result = priors.choose_scale(mean, covariances, labels, self._predictive)
        if result.at_edge:
            warnings.warn(
                f"the validation data prefer a prior precision at the edge of what was tried (factor {result.scale:g}"
                "): a high one says that the trained adapter's own probabilities are best, a low one that they say "
                "little; check the labels.",
                stacklevel=3,
            )
        self._precision = self._precision * result.scale
        self._tuned_by = "validation"
