"""A model made ready for Jacobian passes, and left as it was found."""

import contextlib
from collections.abc import Iterator, Sequence

from torch import nn
from torch.utils.hooks import RemovableHandle

from laplace_lora.adapters import Site
from laplace_lora.adapters.packed import differentiable
from laplace_lora.jacobians.head_pass import HeadPass
from laplace_lora.jacobians.passes import JacobianPass
from laplace_lora.jacobians.recomputation import recomputing
from laplace_lora.readouts import Readout


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while, and leave every module in the mode that it was in.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def jacobian_pass(
    model: nn.Module, sites: Sequence[Site], readout: Readout, *, head_only: bool = False
) -> Iterator[JacobianPass | HeadPass]:
    """Prepare a model for Jacobian passes and leave it as it was found, whatever happens.

    Args:
        model: The model.
        sites: The matrices to differentiate by.
        readout: Batch to logits, calling the model exactly once.
        head_only: Whether the sites are a classification head alone, which needs no backward pass.

    Yields:
        The prepared pass. Inside, the model is in eval mode, its parameters are frozen and hooks are set. Gradient
        checkpointing, where it is switched on, stays on.
    """
    runner = (HeadPass if head_only else JacobianPass)(model, sites, readout)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles: list[RemovableHandle] = []
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with evaluating(model), differentiable(model), recomputing(model):
            handles += runner.hooks()
            yield runner
    finally:
        for handle in handles:
            handle.remove()
        runner.release()
        for parameter in trainable:
            parameter.requires_grad_(True)
