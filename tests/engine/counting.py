"""Counts passes: how often a model runs forward, and autograd backward."""

import dataclasses

from torch import nn


@dataclasses.dataclass
class Passes:
    """How often the base model ran forward, and autograd backward."""

    forward: int = 0
    backward: int = 0

    def take(self) -> tuple[int, int]:
        """Return (forward, backward) since the last call."""
        seen = (self.forward, self.backward)
        self.forward = self.backward = 0
        return seen


def counted_model(model: nn.Module, passes: Passes) -> nn.Module:
    """Count the forward passes of a model's backbone."""

    def count(*_: object) -> None:
        passes.forward += 1

    backbone = getattr(model.get_base_model(), model.get_base_model().base_model_prefix)
    backbone.register_forward_pre_hook(count)
    return model
