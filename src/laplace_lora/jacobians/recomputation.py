"""Gradient checkpointing in eval mode: activations are computed anew in the backward pass instead of being held.

transformers checkpoints in training mode only, where dropout is on. Here the layers that are switched to checkpointing
believe that they train until they have decided to checkpoint, and run in eval mode all the same.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextlib.contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Keep gradient checkpointing on where the model has it on.

    Every backward pass then costs another forward pass of those layers, and the layers' activations are not held.

    Args:
        model: The model, in eval mode.

    Yields:
        Nothing.
    """
    layers: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
    ]
    before = [(layer.training, layer.__dict__.get("_gradient_checkpointing_func")) for layer in layers]
    try:
        for layer in layers:
            layer.training = True
            layer._gradient_checkpointing_func = functools.partial(_in_eval_mode, layer)
        yield
    finally:
        for layer, (training, function) in zip(layers, before, strict=True):
            layer.training = training
            if function is None:
                layer.__dict__.pop("_gradient_checkpointing_func", None)
            else:
                layer._gradient_checkpointing_func = function


def _in_eval_mode(layer: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
    def run(*inner: Any) -> Any:
        layer.training = False
        try:
            return forward(*inner)
        finally:
            layer.training = True

    # Re-entrant checkpointing cannot be asked for the gradients of chosen tensors. Without dropout there is no
    # randomness to restore.
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)
