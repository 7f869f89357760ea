"""BLoB (Wang et al., "BLoB: Bayesian low-rank adaptation by backpropagation", NeurIPS 2024, arXiv 2406.11675).

Bayes by backprop (Blundell et al., ICML 2015) of lora_A alone. Here and in the published code
(Wang-ML-Lab/bayesian-peft, modelwrappers/blob.py) the steps are the same: AdamW on the negative log-likelihood under
Flipout noise, then plain gradient descent on the weighted KL in closed form, each by the training's schedule; N, the
batch size and the learning rates are those of the subject's own training. What differs:

- Predictions: whole adapters are drawn, so that one draw answers all examples and tokens alike. The published code
  draws Flipout noise when it evaluates too: other deviations for every token of every example.
- The KL: exact. The published one adds 1e-6 to deviations and to 2 beta^2 before it divides or takes logarithms.
- Dropout: signs and noise act on the inputs of lora_A as dropout left them; the published code draws a second mask.
- Starts, signs and noise come from generators of their own, by the subject's seed; the order of examples and dropout
  are as in the subject's own training.
- Where training clips gradients, the norm is that of the adapter's own, without G's. The published code never clips.
"""

import dataclasses
from typing import ClassVar

from laplace_lora.adapters import moved_to
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.methods.base import Answers, Fitted, Method, State, Subject, require_retraining
from laplace_lora.methods.forward import Loader, adapters, class_logits, member_probabilities
from laplace_lora.methods.pairs import plain_pairs
from laplace_lora.methods.variational import ROOT, draw, train


@dataclasses.dataclass(frozen=True)
class _Variational(Method):
    trains: ClassVar[bool] = True
    uses_adapter: ClassVar[bool] = False

    epsilon: float = 0.05
    beta: float = 0.2
    kl_rate: float = 0.01
    gamma: float = 8.0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if not (self.epsilon > 0.0 and self.beta > 0.0 and self.gamma > 0.0 and self.kl_rate >= 0.0):
            raise LaplaceLoRAError(
                f"{self.name} has epsilon {self.epsilon}, beta {self.beta}, gamma {self.gamma} and kl_rate "
                f"{self.kl_rate}; give positive numbers, 0 at least for kl_rate."
            )

    def _posterior(self, subject: Subject) -> State:
        """Train, or find what was trained for the other of the two methods."""
        pairs = plain_pairs(subject.model, "BLoB")
        retrain = require_retraining(subject, self.name)

        def make() -> State:
            with subject.stopwatch.watch("train"):
                return train(
                    subject.model,
                    pairs,
                    retrain,
                    epsilon=self.epsilon,
                    beta=self.beta,
                    kl_rate=self.kl_rate,
                    gamma=self.gamma,
                    seed=subject.seed,
                )

        settings = (self.epsilon, self.beta, self.kl_rate, self.gamma)
        return subject.remember("-".join(["blob", *(f"{value:g}" for value in settings)]), make)


@dataclasses.dataclass(frozen=True)
class Blob(_Variational):
    """BLoB: the posterior over lora_A that is trained in place of the adapter, sampled.

    The posterior is N(M, Omega^2) over the elements of lora_A, Omega = G o G; lora_B and a head that is trained in
    full are deterministic. The prior is N(0, beta^2). Training is from the start of the adapter's own, as long as it,
    and takes one forward and one backward pass per step as it does, plus the noise's matrix products of rank r. An
    answer takes ``samples`` forward passes, and memory for as many adapters. G takes as many numbers as lora_A.

    Attributes:
        epsilon: G starts uniformly in [epsilon / sqrt(2), epsilon]: deviations in [epsilon^2 / 2, epsilon^2]. Steps on
            the KL are about 2 kl_rate pi / g long: a small epsilon needs a small kl_rate.
        beta: The prior's standard deviation.
        kl_rate: Peak rate of the steps on the KL, warmed up and decayed as the learning rate.
        gamma: The KL is spread over cycles of int(100 N^(pi / gamma) / batch size) steps.
        samples: Adapters to draw.
    """

    name: ClassVar[str] = "blob"
    title: ClassVar[str] = "BLoB"

    samples: int = 10

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        super().__post_init__()
        if self.samples < 1:
            raise LaplaceLoRAError(f"blob cannot draw {self.samples} adapters; give 1 at least, or use blob_mean.")

    def fit(self, subject: Subject) -> Fitted:
        """Train the posterior, and draw.

        Args:
            subject: The adapter; left as it was found.

        Returns:
            ``samples`` forward passes per data set. ``found`` has the mean of Omega.
        """
        return _Sampled(subject, self._posterior(subject), self.samples)


@dataclasses.dataclass(frozen=True)
class BlobMean(_Variational):
    """BLoB with N = 0: the adapter at the posterior's mean. Shares its training with :class:`Blob` of equal settings.

    An answer takes one forward pass.

    Attributes:
        epsilon: As :class:`Blob`.
        beta: As :class:`Blob`.
        kl_rate: As :class:`Blob`.
        gamma: As :class:`Blob`.
    """

    name: ClassVar[str] = "blob_mean"
    title: ClassVar[str] = "BLoB, mean"

    def fit(self, subject: Subject) -> Fitted:
        """Train the posterior.

        Args:
            subject: The adapter; left as it was found.

        Returns:
            One forward pass per data set. ``found`` has the mean of Omega.
        """
        return _Mean(subject, self._posterior(subject))


class _Mean(Fitted):
    def __init__(self, subject: Subject, posterior: State) -> None:
        super().__init__(subject, found={"deviation": _mean_deviation(posterior)})
        self._posterior = posterior

    def answer(self, loader: Loader) -> Answers:
        with moved_to(self.subject.model, self._posterior):
            logits, _ = class_logits(self.subject.model, self.subject.readout, loader)
        return Answers(logits.softmax())


class _Sampled(Fitted):
    def __init__(self, subject: Subject, posterior: State, samples: int) -> None:
        roots = [value for key, value in posterior.items() if key.endswith(ROOT)]
        stored = sum(value.numel() * value.element_size() for value in roots)
        super().__init__(subject, stored, {"deviation": _mean_deviation(posterior)})
        self._posterior, self._samples = posterior, samples

    def answer(self, loader: Loader) -> Answers:
        model = self.subject.model
        members = adapters(model, draw(self._posterior, self._samples, self.subject.seed))
        return Answers.of_members(member_probabilities(model, self.subject.readout, loader, members))


def _mean_deviation(posterior: State) -> float:
    roots = [value.double() for key, value in posterior.items() if key.endswith(ROOT)]
    return float(sum(root.square().sum() for root in roots)) / sum(root.numel() for root in roots)
