"""LaplaceLoRA: the estimator that turns a trained adapter into a posterior and a posterior into predictions."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laplace_lora import prior as priors
from laplace_lora import tuning
from laplace_lora.adapters import altered_start, discover_sites
from laplace_lora.config import LaplaceConfig, Score, TunedBy
from laplace_lora.covered import Covered
from laplace_lora.curvature import fit_curvature, fit_further, require_rereadable
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.estimate import Estimate
from laplace_lora.fitted import Fitted
from laplace_lora.persistence import (
    InputFormat,
    read_posterior,
    restored_readout,
)
from laplace_lora.predictive import JointPredictive, Predictive
from laplace_lora.reading import Noted, Peeked, Reader
from laplace_lora.readouts import Readout, label_names_of, readout_of_model, split_labels
from laplace_lora.structures import STRUCTURES

Batch = Mapping[str, Any]


class LaplaceLoRA(Estimate):
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
            readout: How logits are read from the model. Inferred from the model and, in ``fit``, from the first batch
                where there is only one that fits.
            input_format: How inputs are made from text; kept and saved, not used in any computation.
        """
        self.model = model
        self.config = config or LaplaceConfig()
        self._names_given = input_format is not None
        self.input_format = input_format or InputFormat(label_names=label_names_of(model))
        self._structure = STRUCTURES[self.config.structure]
        self._found = discover_sites(model, self.config.include_modules_to_save)
        self._covers: Covered | None = None
        self._fitted: Fitted | None = None
        self._tail_warned = False
        readout = readout or readout_of_model(model, self.config.likelihood)
        self._inferring = readout is None
        if readout is not None:
            self._read_by(readout)

    def _read_by(self, readout: Readout) -> None:
        """Settle the readout, and with it weight matrices and prior groups."""
        self._covers = Covered.by(readout, self._found, self.model, self.config)
        # Names that are no groups are refused now, not after a pass over the data.
        self._covers.groups.precisions(self.config.prior_precision)

    def fit(self, loader: Iterable[Batch]) -> "LaplaceLoRA":
        """Collect the curvature of the training data in one pass.

        The loader is read once, with ``ekfac`` twice. Each batch takes one forward pass and K-1 backward passes to the
        LoRA weights, or one with a one-pass Fisher, or none with ``last_layer``. Labels are not needed for the
        posterior; without them there is no evidence. Fitting again starts anew, from the configured prior.

        Args:
            loader: Batches as Hugging Face collators make them: names to tensors.

        Returns:
            Itself.
        """
        self._fitted = None
        again = loader
        require_rereadable(self._structure.curvature.passes, self.config, loader)
        if self._inferring:
            loader = Peeked(self.model, loader, None if self._covers is None else self.readout)
            self._read_by(loader.readout)
        covered = self._covered
        curvature = self._structure.curvature(covered.shapes, self.config)
        result, check, padding_side = fit_curvature(
            self.model, covered.sites, curvature, self.config, self.readout, covered.reader.likelihood, loader
        )
        covers = covered.sites, self.config, self.readout, covered.reader.likelihood
        curvature = fit_further(curvature, self.model, *covers, again, result)
        self._settle_names(result.classes)
        statistics = curvature.finalise()
        curvature.require_finite(statistics)
        posterior = self._structure.posterior.from_statistics(covered.shapes, statistics, curvature.dtype)
        posterior.assign_groups(covered.groups.index)
        self._fitted = Fitted(
            covered, self.config, posterior, result, self._precision, self.config.noise_variance, check=check
        )
        if self.input_format.padding_side is None:
            self.input_format = dataclasses.replace(self.input_format, padding_side=padding_side)
        self._tail_warned = _warn(self._fitted.tail_warning, stacklevel=2)
        return self

    def tune_prior(
        self,
        method: TunedBy | tuple[str, Iterable[Any]] = "auto",
        data: Iterable[Any] | None = None,
        *,
        score: Score = "nll",
        temperature: bool = True,
        starting_point: Mapping[str, Tensor] | None = None,
    ) -> "LaplaceLoRA":
        """Choose the prior precisions, and on held-out data a temperature of the mean logits with them.

        ``evidence`` maximises the log marginal likelihood by a fixed point, without any model pass; the prior's mean is
        zero, or ``starting_point``. ``auto`` does the same and then, where the adapter was not over-fitted, raises the
        precisions until the training data that ``fit`` kept lose no more than 0.01 nats; and the answers stay the
        trained adapter's (:attr:`keeps_answers`; docs/tuning.md).
        ``validation`` minimises a score of held-out data over all groups' precisions and the temperature together, in
        one pass over them. ``cross_fit`` does the same on what every one of several adapters, trained alike on all
        examples but a fold, says of its fold: no example is given up. With :class:`Scalar`, ``auto``, ``evidence`` and
        ``validation`` choose the noise variance too, and no temperature.

        Args:
            method: ``"auto"``, ``"evidence"``, ``"validation"`` or ``"cross_fit"``; or the pair of it and its data.
            data: For ``"validation"`` labelled batches; for ``"cross_fit"`` pairs of a fitted :class:`LaplaceLoRA`,
                configured as this one, and labelled batches of its fold, one after the other.
            score: Of held-out classes: ``nll``, ``brier`` or ``ece``.
            temperature: Whether a temperature is chosen on held-out classes; else it is 1.
            starting_point: Without held-out data: the prior's mean, the adapter's state dict before training
                (``peft.get_peft_model_state_dict``; ``laplace-lora train`` leaves it in starting_point.safetensors).
                What an adapter has moved says what its training needed, where the size of its random start does not.

        Returns:
            Itself.

        Raises:
            LaplaceLoRAError: The method is unknown, lacks its data, or an option is not one of its own.
        """
        if isinstance(method, tuple):
            name, data = method
        else:
            name = method
        tuned_on = None
        tuning.check_request(name, data is not None, score, temperature, starting_point is not None)
        before = self._state
        if data is None:
            before.require_labels()
        self.require_tunable(name, known_start=starting_point is not None)
        if name == "cross_fit":
            assert data is not None
            found = [self._fold(la, loader) for la, loader in data]
            tuning.require_folds(len(found))
            self._fitted, warning = before.by_held_out(found, "cross_fit", score, temperature)
        elif name == "validation":
            assert data is not None
            noted = Noted(data, self.readout)
            self._fitted, warning = before.by_validation(self.model, noted, score, temperature)
            tuned_on = noted.inputs
        else:
            centre = None if starting_point is None else self._covered.squared_distances(self.model, starting_point)
            self._fitted, warning = dataclasses.replace(before, centre=centre).by_evidence(harmless=name == "auto")
        self._fitted = self._fitted.with_tuned_on(tuned_on)
        _warn(warning, stacklevel=2)
        if not self._tail_warned:
            self._tail_warned = _warn(self._fitted.tail_warning, stacklevel=2)
        return self

    def _fold(self, la: "LaplaceLoRA", loader: Iterable[Batch]) -> priors.HeldOut:
        """Collect what a fold's adapter says of its fold, at this estimator's prior groups."""
        state = la._state
        if la._covered.shapes != self._covered.shapes or la._covered.groups != self._covered.groups:
            raise LaplaceLoRAError(
                "a fold's posterior covers other weights or groups than this one; fit it with the same configuration."
            )
        if not state.posterior.has_spectrum:
            # Multiples are of the precisions in use.
            state = dataclasses.replace(state, precision=self._state.precision)
        return state.held_out(la.model, loader, "fold")

    def predict(self, batch: Batch, top_k: int | None = None, readout: Readout | None = None) -> Predictive:
        """Predict one batch; labels in it are ignored (of ``NextToken``, they say which tokens count).

        Costs one forward pass and K-1 backward passes; one where every option has a row of its own, and none with
        ``last_layer`` on a classification head.

        Args:
            batch: Names to tensors, as for ``fit``.
            readout: Read the same model in another way than in ``fit``: the rewards of single texts of a model fitted
                to pairs with ``Scalar()``, for one.
            top_k: Vary only the logits of the trained adapter's k likeliest classes: k-1 backward passes. The
                others keep their probabilities, whose sum is the result's ``neglected_mass``.

        Returns:
            Probabilities and their uncertainty, float64, on the model's device.
        """
        return self._predict([batch], top_k, readout, hide_progress=True)

    def predict_dataset(
        self, loader: Iterable[Batch], top_k: int | None = None, readout: Readout | None = None
    ) -> Predictive:
        """Predict every batch of a loader.

        Args:
            loader: Batches as for ``predict``.
            top_k: As for ``predict``.
            readout: As for ``predict``.

        Returns:
            All examples in order.
        """
        return self._predict(loader, top_k, readout, hide_progress=not self.config.progress)

    def predict_joint(self, loader: Iterable[Batch]) -> JointPredictive:
        """Predict every example of a loader as one Gaussian, covariances between examples included.

        Costs what :meth:`predict_dataset` does and holds all examples' Jacobians: 4 n (K-1) P bytes for n examples, K
        classes (K rows for options) and P weights in float32, about three times that at the end.

        Args:
            loader: Batches as for ``predict``.

        Returns:
            Means (n, K) and the covariance (n, K, n, K) of the centred logits, in squared logits, float64, on the
            model's device.

        Raises:
            LaplaceLoRAError: There is no example.
            MemoryLimitError: Jacobians with copies, 16 n (K-1) P bytes, and the covariance would exceed
                ``memory_limit_bytes``.
            NotFittedError: ``fit`` has not run.
        """
        state, reader = self._state, self._covered.reader
        shown = "joint" if self.config.progress else None
        return state.linearised(self.model).predict_jointly(loader, reader, shown, state.noise_variance)

    def seen_in_fit(self, batch: Batch) -> Tensor:
        """Say which inputs of a batch were among the training data, on which nothing should be evaluated.

        Args:
            batch: Names to tensors, as for ``fit``.

        Returns:
            (B,) bool.

        Raises:
            NotFittedError: ``fit`` has not run.
        """
        return self._state.training.seen(self.readout.rows(*split_labels(batch, torch.device("cpu"))))

    def seen_in_tuning(self, batch: Batch) -> Tensor:
        """Say which inputs of a batch were among the held-out data of ``tune_prior("validation", ...)``.

        Prior, temperature or noise were chosen on these, so that no rule with a guarantee can be.

        Args:
            batch: Names to tensors, as for ``fit``.

        Returns:
            (B,) bool.

        Raises:
            NotFittedError: ``fit`` has not run.
        """
        return self._state.training.tuned(self.readout.rows(*split_labels(batch, torch.device("cpu"))))

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
        return self._state.sample(self.model, n, seed)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write posterior_config.json and posterior.safetensors, whole or not at all.

        Args:
            directory: Usually the adapter's own; its other files are not touched.
        """
        self._state.save(self.model, self.input_format, Path(directory))

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
        state, posterior, training = read_posterior(directory, next(model.parameters()).device)
        la = cls(model, state.config, restored_readout(state.readout, state.readout_settings), state.input_format)
        state.check_model(la._covered.fingerprint(model), la._covered.shapes)
        precision = torch.tensor(state.prior_precision, dtype=torch.float64)
        noise = state.noise_variance or state.config.noise_variance
        centre = None if state.squared_distances is None else torch.tensor(state.squared_distances, dtype=torch.float64)
        la._fitted = Fitted(
            la._covered,
            state.config,
            posterior,
            training,
            precision,
            noise,
            state.tuned_by,
            temperature=state.temperature,
            keeps_answers=state.keeps_answers,
            centre=centre,
        )
        return la

    def _settle_names(self, classes: int) -> None:
        """Drop the model's own names of outputs that are not the classes; refuse such names where they were given."""
        names = self.input_format.label_names
        if names is None or len(names) == classes:
            return
        if self._names_given:
            raise LaplaceLoRAError(
                f"input_format has {len(names)} label names, and the data have {classes} classes; give one name per "
                "class, or none."
            )
        self.input_format = dataclasses.replace(self.input_format, label_names=None)

    def _predict(
        self, loader: Iterable[Batch], top_k: int | None, readout: Readout | None, hide_progress: bool
    ) -> Predictive:
        state, reader = self._state, self._covered.reader
        # A reward model's texts are observed in pairs: there is no noise on each.
        noise, classes = state.noise_variance, state.training.classes
        if readout is not None:
            reader.require_compatible(readout, self.model, self._covered.sites)
            reader = Reader.of(readout, self.model, self.config)
            classes = classes if readout.head_rows is None else len(readout.head_rows)
        reader.require_top_k(top_k, classes)
        return state.linearised(self.model).predict(loader, reader, None if hide_progress else "predict", noise, top_k)

    def require_tunable(self, method: str, known_start: bool = False) -> None:
        """Refuse a way of tuning that cannot work here; nothing needs to have been fitted.

        Args:
            method: ``"auto"``, ``"evidence"``, ``"validation"`` or ``"cross_fit"``.
            known_start: Whether the prior's mean is the adapter's starting point.

        Raises:
            LaplaceLoRAError: The evidence would mislead (PiSSA and its kin), or held-out data cannot be compared.
        """
        if method in ("auto", "evidence"):
            tuning.require_known_start(None if known_start else altered_start(self.model))
        elif self._covers is not None:
            self._covers.reader.require_validation(folds=method == "cross_fit")


def _warn(message: str | None, stacklevel: int) -> bool:
    """Warn, and say whether there was anything to say."""
    if message:
        warnings.warn(message, stacklevel=stacklevel + 1)
    return bool(message)
