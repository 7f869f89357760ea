"""Configurations that quantise every linear layer."""

from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig


def everything(quantization: str) -> Any:
    """Return a configuration that leaves no linear layer out, not even the last."""
    if quantization == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=[])
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=[],
    )
