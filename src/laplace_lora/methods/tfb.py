"""TFB (Shi et al., "Training-free Bayesianization for low-rank adapters", NeurIPS 2025, arXiv 2412.05723).

For every pair, B = U diag(d) V^T (the compact singular value decomposition) and A' = V^T A, so that B A is
U diag(d) A'. Row i of A' gets independent noise of standard deviation sigma / d_i: the posterior of B A is then that of
equal variance sigma^2 along the r columns of U and none across them, the paper's low-rank isotropic Gaussian. sigma is
one number for all pairs, and does not include the adapter's scale alpha / r. Here the trained weights stay what they
are: a drawn adapter is (A + V diag(sigma / d) E, B), E of N(0, 1), which is the same product.

sigma is the largest that leaves the loss on an anchor set within a tolerance, by bisection. The paper's tolerance, and
the default here, is the relative change |NLL(sigma) - NLL| / NLL <= 0.003. The anchor set is the subject's training
data, labelled as in the published code by the adapter's own predicted classes; the paper has true labels too.

The published code (Wang-ML-Lab/bayesian-peft, modelwrappers/tfblora.py) differs:

- It divides the relative change by the number N of anchor examples once more, though both losses are means already: its
  0.003 is 0.003 N of the paper's. Give ``tolerance=0.003 * N`` to have that search.
- It returns the upper end of the last bracket, the smallest sigma that was rejected; here it is the lower one, the
  largest that was accepted.
- It draws anew at every sigma, and Flipout noise, other for every token; here whole adapters are drawn, by the same E
  at every sigma and in predictions. The search is deterministic, its change that of the very adapters that answer.
- It adds 1e-6 to every d_i; here rows without effect get no noise.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from laplace_lora.adapters import active_adapter, adapter_state_dict
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.metrics import IntArray, log_losses
from laplace_lora.evaluation.outputs import FloatArray
from laplace_lora.methods.base import Answers, Fitted, Method, Subject
from laplace_lora.methods.forward import Loader, adapters, class_logits, member_probabilities
from laplace_lora.methods.pairs import Pair, exact, generator, plain_pairs

_NUMBER_BYTES = 8


@dataclasses.dataclass(frozen=True)
class Tfb(Method):
    """TFB: the trained adapter, with as much noise on it as the training data's loss tolerates.

    The search takes 1 + ``samples`` * ``steps`` forward passes over the training data, and ``samples`` more where none
    of the bisection's midpoints is within tolerance: 1 + ``samples`` * (``steps`` + 1) at most. An answer takes
    ``samples``. Both take memory for 2 * ``samples`` adapters. Kept is one number: the noise comes from the seed.

    Attributes:
        samples: Adapters to draw, in the search and in predictions.
        tolerance: Of |NLL(sigma) - NLL| / NLL on the anchor set, NLL(sigma) that of the drawn adapters' mean
            probabilities.
        steps: Of the bisection.
        smallest: Lower end of the search. Taken where not even it is within tolerance; ``found`` says so.
        largest: Upper end, itself never tried: the largest possible sigma is one 2^-``steps``-th of the range below.
        labels: What the loss is of: the trained adapter's likeliest classes, or the true ones.
    """

    name: ClassVar[str] = "tfb"
    title: ClassVar[str] = "TFB"

    samples: int = 10
    tolerance: float = 0.003
    steps: int = 5
    smallest: float = 0.001
    largest: float = 0.015
    labels: Literal["predicted", "true"] = "predicted"

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.samples < 1 or self.steps < 1:
            raise LaplaceLoRAError(f"tfb has {self.samples} samples and {self.steps} steps; give 1 at least of each.")
        if not (0.0 < self.smallest < self.largest and self.tolerance >= 0.0):
            raise LaplaceLoRAError(
                f"tfb cannot search [{self.smallest}, {self.largest}] with tolerance {self.tolerance}; give "
                "0 < smallest < largest, and no negative tolerance."
            )
        if self.labels not in ("predicted", "true"):
            raise LaplaceLoRAError(f"tfb knows no labels {self.labels!r}; give 'predicted' or 'true'.")

    def fit(self, subject: Subject) -> Fitted:
        """Search sigma.

        Args:
            subject: The adapter; left as it was found.

        Returns:
            ``samples`` forward passes per data set. ``found`` has ``sigma``, the relative ``change`` of the loss at
            it (None where the loss was 0 or is infinite), and ``within``, whether that is within tolerance.

        Raises:
            LaplaceLoRAError: True labels are asked for, and the training data has none.
        """
        posterior = Posterior(subject, self.samples)
        with subject.stopwatch.watch("tune"):
            logits, labels = class_logits(subject.model, subject.readout, subject.train)
            if self.labels == "predicted":
                labels = logits.values.argmax(axis=1)
            elif labels is None:
                raise LaplaceLoRAError("tfb has no labels in the training data; add them, or give labels='predicted'.")
            before = negative_log_likelihood(logits.softmax().values, labels)

            def change(sigma: float) -> float:
                mean = posterior.members(sigma, subject.train).mean(axis=0)
                return relative_change(before, negative_log_likelihood(mean, labels))

            sigma, found = largest_within(change, self.smallest, self.largest, self.steps, self.tolerance)
        within = found <= self.tolerance  # not if it is no number
        if not within:
            warnings.warn(
                f"no noise down to sigma = {self.smallest:g} keeps the loss within tolerance (it changes by "
                f"{found:.3g} of itself, and {self.tolerance:g} is allowed); give a smaller smallest.",
                stacklevel=2,
            )
        return _Noisy(subject, posterior, sigma, found, within)


class _Noisy(Fitted):
    def __init__(self, subject: Subject, posterior: "Posterior", sigma: float, change: float, within: bool) -> None:
        # A change from a loss of 0, or of an infinite one, is no number.
        found = {"sigma": sigma, "change": change if math.isfinite(change) else None, "within": within}
        super().__init__(subject, _NUMBER_BYTES, found)
        self._posterior, self._sigma = posterior, sigma

    def answer(self, loader: Loader) -> Answers:
        return Answers.of_members(self._posterior.members(self._sigma, loader))


class Posterior:
    """Adapters around the trained one, moved by sigma times directions that are drawn once.

    Attributes:
        trained: The adapter's weights under PEFT's keys.
        directions: For every draw and key of a lora_A, V diag(1 / d) E of (r, in).
    """

    def __init__(self, subject: Subject, samples: int) -> None:
        """Draw.

        Args:
            subject: The adapter, and the seed.
            samples: How many adapters.

        Raises:
            UnsupportedAdapterError: The adapter is not plain LoRA on linear layers.
        """
        pairs = plain_pairs(subject.model, "TFB")
        state = adapter_state_dict(subject.model, active_adapter(subject.model))
        self.trained = {key: value.clone() for key, value in state.items()}
        self.directions: list[dict[str, Tensor]] = [{} for _ in range(samples)]
        self._subject = subject
        for index, pair in enumerate(pairs):
            spread = inverse_spread(pair)
            for sample, direction in enumerate(self.directions):
                random = generator(torch.device("cpu"), subject.seed, sample, index)
                shape = (spread.shape[1], pair.first.weight.shape[1])
                normal = torch.randn(shape, generator=random, dtype=torch.float64).to(spread.device)
                direction[pair.key] = (spread @ normal).to(exact(pair.first.weight))

    def states(self, sigma: float) -> list[dict[str, Tensor]]:
        """Return the drawn adapters.

        Args:
            sigma: Standard deviation of B A's elements in the coordinates of B's left singular vectors.

        Returns:
            Weights under PEFT's keys.
        """
        return [
            {**self.trained, **{key: self.trained[key] + sigma * value for key, value in direction.items()}}
            for direction in self.directions
        ]

    def members(self, sigma: float, loader: Loader) -> FloatArray:
        """Run a data set through them.

        Args:
            sigma: As :meth:`states`.
            loader: Batches; labels in them are ignored.

        Returns:
            (S, N, K) probabilities.
        """
        model = self._subject.model
        return member_probabilities(model, self._subject.readout, loader, adapters(model, self.states(sigma)))


def inverse_spread(pair: Pair) -> Tensor:
    """Return V diag(1 / d) of lora_B = U diag(d) V^T.

    Singular values that are zero to rounding have no direction in B's column space to spread along, and 1 / d would
    blow up: their columns are left out. Zero to rounding is below the largest one's precision in the weights' type.

    Args:
        pair: The pair.

    Returns:
        (r, k) float64, k the rank of B to rounding; 0 for an untrained B of zeros.
    """
    weight = pair.second.weight.detach()
    _, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    precision = max(torch.finfo(weight.dtype).eps, max(weight.shape) * torch.finfo(torch.float64).eps)
    kept = values > precision * values.max()
    return right[kept].T / values[kept]


def negative_log_likelihood(probabilities: FloatArray, labels: IntArray) -> float:
    """Return the mean negative log-likelihood, infinite where a label has no probability.

    Args:
        probabilities: (N, K).
        labels: (N,).

    Returns:
        Nats per example.
    """
    return float(log_losses(probabilities, labels).mean())


def relative_change(before: float, after: float) -> float:
    """Return |after - before| / before.

    Args:
        before: A loss, 0 or more.
        after: The same later.

    Returns:
        The change; infinite where a loss of 0 is no longer 0.
    """
    difference = abs(after - before)
    if before > 0.0:
        return difference / before
    return math.inf if difference > 0.0 else 0.0


def largest_within(
    change: Callable[[float], float], smallest: float, largest: float, steps: int, tolerance: float
) -> tuple[float, float]:
    """Find the largest number whose change is within tolerance, by bisection.

    Where the change never falls, that is the largest of ``smallest + k (largest - smallest) / 2^steps``, k from 0 to
    2^steps - 1; elsewhere it is one that is within tolerance, below one that is not. Where none of the midpoints is, it
    is ``smallest``, whatever its change.

    Args:
        change: Called ``steps`` times; once more where no midpoint is within tolerance.
        smallest: Lower end of the range.
        largest: Its upper end; not tried.
        steps: Halvings.
        tolerance: The most change.

    Returns:
        The number and its change.
    """
    low, high, found = smallest, largest, None
    for _ in range(steps):
        middle = 0.5 * (low + high)
        here = change(middle)
        if here <= tolerance:
            low, found = middle, here
        else:
            high = middle
    return low, change(low) if found is None else found
