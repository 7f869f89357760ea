"""Laplace-LoRA: Gaussian posteriors over the weights of fine-tuned LoRA adapters."""

from laplace_lora.config import LaplaceConfig
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.loading import load_adapter
from laplace_lora.persistence import InputFormat
from laplace_lora.predictive import Predictive
from laplace_lora.readouts import ClassLogits

__all__ = [
    "ClassLogits",
    "InputFormat",
    "LaplaceConfig",
    "LaplaceLoRA",
    "LaplaceLoRAError",
    "Predictive",
    "load_adapter",
]
