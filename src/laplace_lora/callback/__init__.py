"""A callback of the Hugging Face Trainer, and of TRL's, that fits the posterior of what they train."""

from laplace_lora.callback.events import LaplaceCallback

__all__ = ["LaplaceCallback"]
