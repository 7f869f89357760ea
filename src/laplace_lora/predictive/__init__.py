"""From Gaussian logits to probabilities and their uncertainty."""

from laplace_lora.predictive.integrals import expected_softmax
from laplace_lora.predictive.integrators import INTEGRATORS, Integrator
from laplace_lora.predictive.jointly import JointPredictive
from laplace_lora.predictive.laplace_bridge import laplace_bridge
from laplace_lora.predictive.monte_carlo import monte_carlo
from laplace_lora.predictive.prediction import Predictive
from laplace_lora.predictive.probit import probit
from laplace_lora.predictive.ragged import concatenate, of_options

__all__ = [
    "INTEGRATORS",
    "Integrator",
    "JointPredictive",
    "Predictive",
    "concatenate",
    "expected_softmax",
    "laplace_bridge",
    "monte_carlo",
    "of_options",
    "probit",
]
