"""What the command line's verbs do, as functions of frozen settings."""

from laplace_lora.commands.acquire import AcquireConfig, acquire
from laplace_lora.commands.console import Console
from laplace_lora.commands.evaluate import EvaluateConfig, evaluate
from laplace_lora.commands.fit import FitConfig, fit
from laplace_lora.commands.info import info
from laplace_lora.commands.predict import PredictConfig, predict
from laplace_lora.commands.readout_choice import ReadoutWish
from laplace_lora.commands.settings import AdapterSource
from laplace_lora.commands.sources import prompts_of
from laplace_lora.commands.train import TrainConfig, dry_run, train
from laplace_lora.commands.tune import PriorWish
from laplace_lora.presets import preset_or_none, training_settings

__all__ = [
    "AcquireConfig",
    "AdapterSource",
    "Console",
    "EvaluateConfig",
    "FitConfig",
    "PredictConfig",
    "PriorWish",
    "ReadoutWish",
    "TrainConfig",
    "acquire",
    "dry_run",
    "evaluate",
    "fit",
    "info",
    "prompts_of",
    "predict",
    "preset_or_none",
    "train",
    "training_settings",
]
