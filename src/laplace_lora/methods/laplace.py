"""Laplace posteriors as methods beside the others: this library's default, the paper's set-up, and an error.

The library's default chooses the prior precision by ``auto``, with the prior's mean where training began. The paper
(Yang et al., "Bayesian low-rank adaptation for large language models", ICLR 2024) maximises the evidence under a prior
with mean zero.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from laplace_lora.config import LaplaceConfig
from laplace_lora.evaluation import Probabilities
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.methods.base import Answers, Fitted, Method, Subject, require_held_out
from laplace_lora.methods.forward import Loader

#: Settings that have no part in a result, or are the run's.
_NO_PART = ("seed", "progress")


class _Posterior(Fitted):
    def __init__(self, subject: Subject, la: LaplaceLoRA) -> None:
        precision = la.prior_precision
        found = {"prior_precision": precision if isinstance(precision, float) else dict(precision)}
        if la.temperature != 1.0:
            found["temperature"] = la.temperature
        super().__init__(subject, la.posterior.nbytes, found)
        self.la = la

    def answer(self, loader: Loader) -> Answers:
        predictive = self.la.predict_dataset(loader)
        information = predictive.mutual_information.double().cpu().numpy()
        return Answers(Probabilities(predictive.probabilities.double().cpu().numpy()), information)


class _Laplace(Method):
    """A posterior by one pass over the training data."""

    along_training: ClassVar[bool] = True
    config: ClassVar[dict[str, Any]] = {}
    tuner: ClassVar[str] = "auto"

    def fit(self, subject: Subject) -> Fitted:
        """Fit the posterior, one forward and K-1 backward passes per row, and choose the prior without any pass.

        Args:
            subject: The adapter.

        Returns:
            One forward and K-1 backward passes per data set.
        """
        la = LaplaceLoRA(
            subject.model, LaplaceConfig(seed=subject.seed, progress=False, **self.config), subject.readout
        )
        with subject.stopwatch.watch("fit"):
            la.fit(subject.train)
        with subject.stopwatch.watch("tune"):
            if self.tuner == "validation":
                la.tune_prior(("validation", require_held_out(subject, self.name)))
            elif self.tuner == "auto":
                la.tune_prior("auto", starting_point=subject.start)
            else:
                la.tune_prior("evidence")
        return _Posterior(subject, la)

    def settings(self) -> dict[str, Any]:
        """Return every setting of the posterior but the seed, which is the run's, and the way the prior is tuned."""
        every = dataclasses.asdict(LaplaceConfig(**self.config))
        return {name: value for name, value in every.items() if name not in _NO_PART} | {"tuner": self.tuner}


class Laplace(_Laplace):
    """The library's default: ``kron``, tuned by ``auto`` around the adapter's start."""

    name: ClassVar[str] = "laplace"
    title: ClassVar[str] = "LA (default)"


class LaplaceEvidence(_Laplace):
    """The default's curvature, with the paper's prior: the evidence's, around zero."""

    name: ClassVar[str] = "laplace_evidence"
    title: ClassVar[str] = "LA (evidence)"
    tuner: ClassVar[str] = "evidence"


class LaplaceValidation(_Laplace):
    """The default's curvature, with precision and temperature chosen on held-out rows."""

    name: ClassVar[str] = "laplace_validation"
    title: ClassVar[str] = "LA (validation)"
    tuner: ClassVar[str] = "validation"
    needs_held_out: ClassVar[bool] = True
    along_training: ClassVar[bool] = False


class LaplaceOfficial(_Laplace):
    """The scale of the paper's code: inputs' factors divided by examples, not by tokens; the evidence's prior."""

    name: ClassVar[str] = "laplace_official"
    title: ClassVar[str] = "LA (official scale, evidence)"
    config: ClassVar[dict[str, Any]] = {"kfac": "official"}
    tuner: ClassVar[str] = "evidence"


class LaplaceLowRank(_Laplace):
    """Curvature between modules too: leading directions of the full matrix, Kronecker factors of the rest."""

    name: ClassVar[str] = "laplace_kron_low_rank"
    title: ClassVar[str] = "LA (kron + low rank, evidence)"
    config: ClassVar[dict[str, Any]] = {"structure": "kron_low_rank"}
    tuner: ClassVar[str] = "evidence"


class LastLayerLaplace(_Laplace):
    """The paper's LLLA: a posterior over the last layer alone, which takes no backward pass."""

    name: ClassVar[str] = "llla"
    title: ClassVar[str] = "LLLA"
    config: ClassVar[dict[str, Any]] = {"structure": "last_layer"}
    tuner: ClassVar[str] = "evidence"


class _Twice(_Posterior):
    def answer(self, loader: Loader) -> Answers:
        """Take the soft-max of probabilities, which is the error."""
        right = super().answer(loader).probabilities.values
        # An option that an example lacks has probability 0 and must not get any.
        powers = np.where(right > 0.0, np.exp(right), 0.0)
        return Answers(Probabilities(powers / powers.sum(axis=1, keepdims=True)))


class SoftmaxTwice(LaplaceOfficial):
    """An error on purpose: probabilities of :class:`LaplaceOfficial`, soft-maxed a second time as if they were logits.

    With K classes every probability then lies between 1 / (K - 1 + e) and e / (K - 1 + e). Published rows of the
    method lie in that band; this row shows what the error does, and is no method.
    """

    name: ClassVar[str] = "softmax_twice"
    title: ClassVar[str] = "LA (official), soft-maxed twice: an error"
    along_training: ClassVar[bool] = False

    def fit(self, subject: Subject) -> Fitted:
        """Fit as :class:`LaplaceOfficial` does.

        Args:
            subject: The adapter.

        Returns:
            What makes the error.
        """
        fitted = super().fit(subject)
        assert isinstance(fitted, _Posterior)
        return _Twice(subject, fitted.la)
