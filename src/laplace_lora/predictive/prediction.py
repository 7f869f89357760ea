"""The predictive distribution of a batch: what ``predict`` returns."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from laplace_lora.config import PredictiveRule
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.predictive.even import evened, in_order_of
from laplace_lora.predictive.integrators import INTEGRATORS


@dataclasses.dataclass(frozen=True, eq=False)
class Predictive:
    """Predictions for B examples and K classes. Tensors are float64 until :meth:`to` says otherwise.

    Where outputs are real numbers there are no classes: probabilities have no columns. Entropies are then those of the
    Gaussian predictive density, which can be negative; of log-probabilities of texts there are none.

    Attributes:
        mean: (B, K) raw logits of the trained adapter, which are the mean of the linearised model's.
        covariance: (B, K, K) covariance of the centred logits (their common shift removed), of rank K-1,
            in squared logits; of the outputs themselves where these are real numbers, options' scores or rewards.
        probabilities: (B, K) posterior predictive probabilities E softmax(f).
        map_probabilities: (B, K) softmax(mean), the trained adapter's own.
        total_entropy: (B,) entropy of ``probabilities``, in nats.
        aleatoric_entropy: (B,) expected entropy E H[softmax(f)], in nats: what more data cannot remove.
        mutual_information: (B,) the difference, clamped at 0, in nats: the epistemic part.
        neglected_mass: (B,) probability, under the trained adapter, of classes whose logits were held fixed
            (:meth:`of_top_classes`); 0 otherwise.
    """

    mean: Tensor
    covariance: Tensor
    probabilities: Tensor
    map_probabilities: Tensor
    total_entropy: Tensor
    aleatoric_entropy: Tensor
    mutual_information: Tensor
    neglected_mass: Tensor

    @classmethod
    def from_gaussian(
        cls,
        mean: Tensor,
        covariance: Tensor,
        rule: PredictiveRule = "integral",
        points: int = 4096,
        temperature: float = 1.0,
        keeps_answers: bool = False,
    ) -> "Predictive":
        """Average the softmax over Gaussian logits.

        Args:
            mean: (B, K) logits.
            covariance: (B, K, K) their covariance; only that of their differences matters.
            rule: Name in :data:`laplace_lora.predictive.INTEGRATORS`: ``integral`` (deterministic quadrature),
                ``probit`` (its expected entropy is the integral's), ``laplace_bridge`` or ``mc``.
            points: Points of the integral for K of 4 and more; draws of ``mc``.
            temperature: Divides the mean logits before they are averaged, and nothing else.
            keeps_answers: Average with the variance spread evenly over the contrasts, so that the classes' order is
                that of ``mean`` (:mod:`laplace_lora.predictive.even`).

        Returns:
            The predictive distribution.
        """
        mean, covariance = mean.double(), covariance.double()
        averaged = evened(covariance) if keeps_answers else covariance
        probabilities, expected_entropy = INTEGRATORS[rule](mean / temperature, averaged, points)
        if keeps_answers:
            probabilities = in_order_of(mean, probabilities)
        total = torch.special.entr(probabilities).sum(dim=-1)
        return cls(
            mean=mean,
            covariance=covariance,
            probabilities=probabilities,
            map_probabilities=torch.softmax(mean, dim=-1),
            total_entropy=total,
            aleatoric_entropy=expected_entropy,
            mutual_information=(total - expected_entropy).clamp(min=0.0),
            neglected_mass=torch.zeros_like(total),
        )

    @classmethod
    def of_top_classes(
        cls,
        mean: Tensor,
        covariance: Tensor,
        rule: PredictiveRule = "integral",
        points: int = 4096,
        temperature: float = 1.0,
        keeps_answers: bool = False,
    ) -> "Predictive":
        """Average the softmax over the k largest logits of every example; the others keep MAP's probabilities.

        With m the MAP probability of the others, the probabilities are (1 - m) q over the k classes, q the
        predictive among them alone, and entropies follow from the chain rule. k = K is :meth:`from_gaussian`.

        Args:
            mean: (B, K) logits.
            covariance: (B, k, k) covariance of the k largest, the largest first.
            rule: As for :meth:`from_gaussian`.
            points: As for :meth:`from_gaussian`.
            temperature: As for :meth:`from_gaussian`; the others keep MAP's probabilities at it.
            keeps_answers: As for :meth:`from_gaussian`, over the k largest.

        Returns:
            The predictive distribution over all K classes; ``covariance`` is 0 outside the k classes.
        """
        mean, covariance = mean.double(), covariance.double()
        size, count = covariance.shape[:2]
        values, index = mean.topk(count, dim=-1)
        among = cls.from_gaussian(values, covariance, rule, points, temperature, keeps_answers)
        rest = torch.softmax(mean / temperature, dim=-1).scatter(1, index, 0.0)
        neglected = rest.sum(dim=-1)
        kept = 1.0 - neglected
        probabilities = rest.scatter(1, index, kept[:, None] * among.probabilities)
        # Chain rule: sum_i -(1-m) q_i log((1-m) q_i) = -(1-m) log(1-m) + (1-m) H[q]; the rest does not vary.
        fixed = torch.special.entr(kept) + torch.special.entr(rest).sum(dim=-1)
        total = fixed + kept * among.total_entropy
        aleatoric = fixed + kept * among.aleatoric_entropy
        whole = mean.new_zeros(size, *2 * mean.shape[1:])
        whole[torch.arange(size)[:, None, None], index[:, :, None], index[:, None, :]] = covariance
        return cls(
            mean=mean,
            covariance=whole,
            probabilities=probabilities,
            map_probabilities=torch.softmax(mean, dim=-1),
            total_entropy=total,
            aleatoric_entropy=aleatoric,
            mutual_information=kept * among.mutual_information,
            neglected_mass=neglected,
        )

    @classmethod
    def of_outputs(cls, mean: Tensor, covariance: Tensor, noise_variance: float | None = None) -> "Predictive":
        """Wrap Gaussian outputs that no softmax follows.

        Args:
            mean: (B, K) outputs.
            covariance: (B, K, K) their covariance.
            noise_variance: Of what is observed of them; None where they are not observed with noise.

        Returns:
            The predictive distribution, without classes. With noise, entropies are those of what is observed.
        """
        none = mean.new_zeros(len(mean), 0, dtype=torch.float64)
        mean, covariance = mean.double(), covariance.double()
        if noise_variance is None:
            return cls(mean, covariance, none, none, none, none, none, none)
        outputs = mean.shape[1]
        noise = noise_variance * torch.eye(outputs, dtype=torch.float64, device=mean.device)
        constant = outputs * math.log(2.0 * math.pi * math.e)
        total = 0.5 * (constant + torch.linalg.slogdet(covariance + noise).logabsdet)
        aleatoric = torch.full_like(total, 0.5 * (constant + outputs * math.log(noise_variance)))
        information = (total - aleatoric).clamp(min=0.0)
        return cls(mean, covariance, none, none, total, aleatoric, information, none)

    @property
    def prediction(self) -> Tensor:
        """(B,) index of the likeliest class."""
        return self._classes().argmax(dim=-1)

    @property
    def confidence(self) -> Tensor:
        """(B,) probability of the likeliest class."""
        return self._classes().max(dim=-1).values

    def to(self, *args: Any, **kwargs: Any) -> "Predictive":
        """Move or convert every tensor.

        Args:
            *args: As for ``torch.Tensor.to``.
            **kwargs: As for ``torch.Tensor.to``.

        Returns:
            A new object.
        """
        return Predictive(**{name: value.to(*args, **kwargs) for name, value in self._tensors().items()})

    def numpy(self) -> dict[str, Any]:
        """Return every quantity as a NumPy array, ``prediction`` and ``confidence`` among them.

        Returns:
            Names to arrays.
        """
        arrays = {name: value.cpu().numpy() for name, value in self._tensors().items()}
        if self.probabilities.shape[-1] == 0:
            return arrays
        return arrays | {"prediction": self.prediction.cpu().numpy(), "confidence": self.confidence.cpu().numpy()}

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.mean.shape[0]

    @staticmethod
    def concatenate(parts: "list[Predictive]") -> "Predictive":
        """Join batches.

        Args:
            parts: At least one.

        Returns:
            One object with all examples, in order.

        Raises:
            LaplaceLoRAError: There is nothing to join.
        """
        if not parts:
            raise LaplaceLoRAError("there are no examples to predict; check the data loader.")
        names = parts[0]._tensors()
        return Predictive(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def _classes(self) -> Tensor:
        if self.probabilities.shape[-1] == 0:
            raise LaplaceLoRAError("real outputs have no classes; read mean and covariance.")
        return self.probabilities

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
