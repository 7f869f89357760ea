"""What an estimator says of its posterior: prior, temperature, training data, evidence. Nothing is changed here."""

from torch import Tensor

from laplace_lora import prior as priors
from laplace_lora.config import LaplaceConfig
from laplace_lora.covered import Covered
from laplace_lora.curvature import FitResult
from laplace_lora.errors import NotFittedError
from laplace_lora.fitted import Fitted
from laplace_lora.persistence import describe
from laplace_lora.posterior import Posterior
from laplace_lora.readouts import Readout


class Estimate:
    """The side of :class:`laplace_lora.LaplaceLoRA` that is read.

    Attributes:
        config: Settings.
    """

    config: LaplaceConfig
    _covers: Covered | None
    _fitted: Fitted | None

    @property
    def readout(self) -> Readout:
        """How logits are read from the model.

        Raises:
            NotFittedError: It depends on the data, and ``fit`` has not seen any.
        """
        return self._covered.reader.readout

    @property
    def posterior(self) -> Posterior:
        """The fitted Gaussian, without its prior.

        Raises:
            NotFittedError: ``fit`` has not run.
        """
        return self._state.posterior

    @property
    def prior_precision(self) -> float | dict[str, float]:
        """Prior precision in use, in 1 / weight^2: a float, or one per group name."""
        values = self._precision.tolist()
        if self.config.prior_groups == "global":
            return float(values[0])
        return dict(zip(self._covered.groups.names, values, strict=True))

    @property
    def temperature(self) -> float:
        """What the mean logits of classes are divided by in predictions; 1 unless held-out data chose another."""
        return 1.0 if self._fitted is None else self._fitted.temperature

    @property
    def prior_raised(self) -> float:
        """By how much ``tune_prior("auto")`` raised the evidence's precisions so as to do no harm; 1 where it did not.

        It is not saved.
        """
        return 1.0 if self._fitted is None else self._fitted.raised

    @property
    def keeps_answers(self) -> bool:
        """Whether every prediction's likeliest class is the trained adapter's, as ``tune_prior("auto")`` sees to.

        Of more than two classes, probabilities are then averaged with the variance spread evenly over the logits'
        contrasts (:mod:`laplace_lora.predictive.even`); ``Predictive.covariance`` stays as it is.
        """
        return self._fitted is not None and self._fitted.keeps_answers

    @property
    def noise_variance(self) -> float | None:
        """Noise variance in use, in squared units of the output; None where the likelihood has none."""
        if self._fitted is not None:
            return self._fitted.noise_variance
        has_noise = self._covers is not None and self._covers.reader.has_noise
        return self.config.noise_variance if has_noise else None

    @property
    def train_accuracy(self) -> float | None:
        """Accuracy of the trained adapter on the training data, or None without labels or before ``fit``."""
        return None if self._fitted is None else self._fitted.training.accuracy

    @property
    def training(self) -> FitResult | None:
        """What the pass over the training data found: N, K, the trained adapter's NLL and accuracy; None before it."""
        return None if self._fitted is None else self._fitted.training

    @property
    def tail_check(self) -> priors.TailCheck | None:
        """Effective number of parameters at the prior in use, with and without what sketched factors only guess.

        None where nothing is guessed. A ratio above 1.25 asks for a larger ``factor_rank``; ``fit`` and
        ``tune_prior`` warn then.
        """
        return self._state.tail_check

    def log_marginal_likelihood(self) -> float:
        """Return the evidence log p(D) of the Laplace approximation at the prior in use.

        Returns:
            The evidence of the training data, in nats.

        Raises:
            NotFittedError: ``fit`` has not run, or its data had no labels.
        """
        return self._state.log_marginal_likelihood()

    def summary(self) -> str:
        """Say in words what the posterior covers, what it does not, and how it was tuned.

        Returns:
            Several lines of text.
        """
        if self._covers is None:
            return "Laplace posterior\n  not fitted; how to read the model depends on the data"
        if self._fitted is not None:
            return self._fitted.summary()
        held = self._covers.adapter.held_at_map
        return describe(self.config, self._covers.shapes, held, self._precision, None, None, None, self.readout.name)

    @property
    def _covered(self) -> Covered:
        if self._covers is None:
            raise NotFittedError("how to read this model depends on the data; call fit(loader), or give readout=... .")
        return self._covers

    @property
    def _state(self) -> Fitted:
        if self._fitted is None:
            raise NotFittedError("the posterior is not fitted; call fit(loader) first.")
        return self._fitted

    @property
    def _precision(self) -> Tensor:
        if self._fitted is not None:
            return self._fitted.precision
        return self._covered.groups.precisions(self.config.prior_precision)
