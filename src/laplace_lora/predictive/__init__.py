"""From Gaussian logits to probabilities and their uncertainty."""

from laplace_lora.predictive.integrals import expected_softmax
from laplace_lora.predictive.prediction import Predictive
from laplace_lora.predictive.probit import probit
from laplace_lora.predictive.ragged import concatenate, of_options

__all__ = ["Predictive", "concatenate", "expected_softmax", "of_options", "probit"]
