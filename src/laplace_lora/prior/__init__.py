"""Choosing the prior precision: by the evidence, or on validation data."""

from laplace_lora.prior.evidence import EvidenceResult, fixed_point, log_evidence, squared_norms
from laplace_lora.prior.noise import NoiseResult, tune_noise, validate_noise
from laplace_lora.prior.tail_check import TailCheck
from laplace_lora.prior.train_check import TrainFit, training_fit, training_warning
from laplace_lora.prior.validation import SCALES, ValidationResult, choose_scale, collect, mean_nll

__all__ = [
    "SCALES",
    "EvidenceResult",
    "NoiseResult",
    "TailCheck",
    "TrainFit",
    "ValidationResult",
    "choose_scale",
    "collect",
    "fixed_point",
    "log_evidence",
    "mean_nll",
    "squared_norms",
    "training_fit",
    "training_warning",
    "tune_noise",
    "validate_noise",
]
