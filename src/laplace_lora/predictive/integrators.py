"""The rules from Gaussian logits to probabilities, by name: a new one is a file of its own and a row here."""

from collections.abc import Callable

from torch import Tensor

from laplace_lora.config import PredictiveRule
from laplace_lora.predictive.integrals import expected_softmax
from laplace_lora.predictive.laplace_bridge import laplace_bridge
from laplace_lora.predictive.monte_carlo import monte_carlo
from laplace_lora.predictive.probit import probit_with_entropy

#: (B, K) means, (B, K, K) covariances and a number of points to (B, K) probabilities and (B,) expected entropies, nats.
Integrator = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

INTEGRATORS: dict[PredictiveRule, Integrator] = {
    "integral": expected_softmax,
    "probit": probit_with_entropy,
    "laplace_bridge": laplace_bridge,
    "mc": monte_carlo,
}
