"""The Jacobian of a classification head by itself, which takes no backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laplace_lora.adapters import Site
from laplace_lora.errors import UnsupportedAdapterError
from laplace_lora.finite import require_finite
from laplace_lora.jacobians.gradients import SiteGradient, statistics_dtype
from laplace_lora.jacobians.passes import Receiver
from laplace_lora.readouts import Draw, ModelRows, Reading, Readout


class HeadPass:
    """A model prepared for passes that yield the Jacobian of its last layer, without a backward pass.

    The logits are the head's outputs at one position of each example, so the Jacobian of a combination
    ``v^T f`` by the head's matrix is ``v h^T``, h the head's input there. That the logits are the head's
    outputs is checked on every batch.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], readout: Readout) -> None:
        """Keep what a pass needs; no hook is set yet.

        Args:
            model: The model, already in eval mode.
            sites: The head, one fully trained linear layer.
            readout: Batch to (B, K) logits, calling the model exactly once.

        Raises:
            UnsupportedAdapterError: There is not exactly one fully trained linear layer.
        """
        if len(sites) != 1 or not sites[0].trained_in_full:
            names = ", ".join(site.name for site in sites) or "none"
            raise UnsupportedAdapterError(
                f"last_layer needs one fully trained linear head (PEFT modules_to_save), found: {names}; use "
                "structure='kron'."
            )
        self.model = model
        self.sites = sites
        self.readout = readout
        self._captured: list[tuple[Tensor, Tensor]] = []
        self._features: Tensor | None = None

    def hooks(self) -> list[RemovableHandle]:
        """Set the forward hook.

        Returns:
            The handle that removes it.
        """

        def on_forward(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._captured.append((args[0].detach(), output.detach()))

        return [self.sites[0].uses[0].hooked.register_forward_hook(on_forward)]

    def forward(self, rows: ModelRows, draw: Draw | None = None) -> Reading:
        """Run the model on a batch and keep the head's inputs for :meth:`rows`.

        Args:
            rows: The batch.
            draw: Random numbers that belong to examples; not used.

        Returns:
            What was read.

        Raises:
            UnsupportedAdapterError: The logits are not outputs of the head.
        """
        self._captured.clear()
        with torch.no_grad():
            reading = self.readout.read(self.model, rows, draw)
        require_finite(reading.outputs, self.model, lambda: self.readout.read(self.model, rows, draw))
        site, logits = self.sites[0], reading.outputs
        if len(self._captured) != 1:
            raise UnsupportedAdapterError(
                f"{site.name} ran {len(self._captured)} times in one forward pass; use structure='kron'."
            )
        inputs, outputs = self._captured[0]
        mask = rows.mask_for(site.name, inputs.shape[:-1], at_head=False)
        if inputs.dim() == 2:
            inputs, outputs = inputs[:, None], outputs[:, None]
        # Pooling only picks a position, so the right one agrees to the last bit.
        expected = logits[:, None].to(outputs.dtype)
        agree = (outputs == expected).all(dim=-1)
        if mask is not None:
            agree &= mask
        if not bool(agree.any(dim=1).all()):
            raise UnsupportedAdapterError(
                f"the logits are not the outputs of {site.name} at any position, so last_layer would be wrong; use "
                "structure='kron'."
            )
        positions = agree.shape[1] - 1 - agree.flip(1).to(torch.int8).argmax(dim=1)
        self._features = inputs[torch.arange(len(inputs), device=inputs.device), positions]
        return reading.detached()

    def rows(self, cotangents: Tensor | None, receive: Receiver) -> None:
        """Hand on the head's gradients for every cotangent.

        Args:
            cotangents: (B, K, M) M combinations of the logits for every example.
            receive: Called once per cotangent.
        """
        assert self._features is not None and cotangents is not None
        has_bias = self.sites[0].bias is not None
        for row in range(cotangents.shape[-1]):
            gradient = cotangents[:, None, :, row].to(statistics_dtype(self._features.dtype))
            with torch.autocast(gradient.device.type, enabled=False):
                receive(SiteGradient(0, row, self._features[:, None], gradient, None, has_bias))
        self.release()

    def release(self) -> None:
        """Drop what was captured."""
        self._features = None
        self._captured.clear()
