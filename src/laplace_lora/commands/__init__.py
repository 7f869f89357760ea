"""What the command line's verbs do, as functions of frozen settings."""

from laplace_lora.commands.console import Console
from laplace_lora.commands.evaluate import EvaluateConfig, evaluate
from laplace_lora.commands.fit import FitConfig, fit
from laplace_lora.commands.info import info
from laplace_lora.commands.predict import PredictConfig, predict
from laplace_lora.commands.readout_choice import ReadoutWish
from laplace_lora.commands.settings import AdapterSource
from laplace_lora.commands.train import TrainConfig, train

__all__ = [
    "AdapterSource",
    "Console",
    "EvaluateConfig",
    "FitConfig",
    "PredictConfig",
    "ReadoutWish",
    "TrainConfig",
    "evaluate",
    "fit",
    "info",
    "predict",
    "train",
]
