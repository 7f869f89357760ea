"""Laplace-LoRA: Gaussian posteriors over the weights of fine-tuned LoRA adapters."""

from laplace_lora.callback import LaplaceCallback
from laplace_lora.config import LaplaceConfig
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.loading import load_adapter
from laplace_lora.persistence import InputFormat
from laplace_lora.predictive import Predictive
from laplace_lora.readouts import AnswerTokens, ClassLogits, NextToken, OptionScores, PairwiseReward, Scalar

__all__ = [
    "AnswerTokens",
    "ClassLogits",
    "InputFormat",
    "LaplaceCallback",
    "LaplaceConfig",
    "LaplaceLoRA",
    "LaplaceLoRAError",
    "NextToken",
    "OptionScores",
    "PairwiseReward",
    "Predictive",
    "Scalar",
    "load_adapter",
]
