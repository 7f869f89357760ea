"""Choosing the prior precision: by the evidence, or on validation data."""

from laplace_lora.prior.evidence import EvidenceResult, fixed_point, log_evidence, squared_norms
from laplace_lora.prior.held_out import SCORES, HeldOut, score
from laplace_lora.prior.joint import JointChoice, choose_jointly
from laplace_lora.prior.noise import NoiseResult, tune_noise, validate_noise
from laplace_lora.prior.tail_check import TailCheck
from laplace_lora.prior.train_check import TrainFit, harmless_multiple, over_fitted, training_fit, training_warning
from laplace_lora.prior.validation import SCALES, AtScales, collect, mean_nll

__all__ = [
    "SCALES",
    "SCORES",
    "AtScales",
    "EvidenceResult",
    "HeldOut",
    "JointChoice",
    "NoiseResult",
    "TailCheck",
    "TrainFit",
    "choose_jointly",
    "collect",
    "fixed_point",
    "harmless_multiple",
    "log_evidence",
    "mean_nll",
    "over_fitted",
    "score",
    "squared_norms",
    "training_fit",
    "training_warning",
    "tune_noise",
    "validate_noise",
]
