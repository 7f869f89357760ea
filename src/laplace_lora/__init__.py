"""Laplace-LoRA: Gaussian posteriors over the weights of fine-tuned LoRA adapters."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Where each name is. It is imported when it is first asked for: the command line's --help must not wait for torch.
_HOMES = {
    "AnswerTokens": "readouts",
    "ClassLogits": "readouts",
    "InputFormat": "persistence",
    "LaplaceCallback": "callback",
    "LaplaceConfig": "config",
    "LaplaceLoRA": "laplace",
    "LaplaceLoRAError": "errors",
    "NextToken": "readouts",
    "OptionScores": "readouts",
    "PairwiseReward": "readouts",
    "Predictive": "predictive",
    "Scalar": "readouts",
    "load_adapter": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
