"""From Gaussian logits to probabilities and their uncertainty."""

from laplace_lora.predictive.integrals import expected_softmax
from laplace_lora.predictive.prediction import Predictive
from laplace_lora.predictive.probit import probit

__all__ = ["Predictive", "expected_softmax", "probit"]
