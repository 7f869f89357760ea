"""One model pass, turned into per-example Jacobians of the logits, matrix by matrix.

One backward pass of a batch's summed logits carries every example's Jacobian (examples do not mix), and no
per-example backward pass is ever needed: DESIGN, section 2, items 1 to 3. Gradients are handed on inside the
backward pass that meets them and are never kept, but for matrices that act in several places.
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from laplace_lora.adapters import Site, output_embeddings
from laplace_lora.adapters.site import Use
from laplace_lora.errors import UnsupportedAdapterError, UnsupportedInputError
from laplace_lora.finite import require_finite
from laplace_lora.jacobians.gradients import MatrixGradient, OptionGradients, SharedGradient, SiteGradient
from laplace_lora.jacobians.singly import JoinedGradient, draw_of, nothing_at, single_rows
from laplace_lora.readouts import Draw, ModelRows, Reading, Readout

Receiver = Callable[[MatrixGradient], None]
#: A site's position, one of its uses, and whether the use is in the output embeddings.
_Placed = tuple[int, Use, bool]


class JacobianPass:
    """A model prepared for passes that yield Jacobians at every site.

    Use it through :func:`jacobian_pass`. Each batch takes one forward pass and one backward pass per
    cotangent (one for all, where every option has a row of its own); the backward pass runs to the LoRA
    weights and forms no weight gradient. Where a layer mixes the batch's rows, its rows go through one by one.
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], readout: Readout) -> None:
        """Keep what a pass needs; no hook is set yet.

        Args:
            model: The model, already in eval mode.
            sites: The matrices to differentiate by.
            readout: Rows to logits, calling the model exactly once.
        """
        self.model = model
        self.sites = sites
        self.readout = readout
        self._probes: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._rows: ModelRows | None = None
        self._draw: Draw | None = None
        self._mixing: str | None = None
        self._forwarding = False
        self._ran: dict[int, int] = {}
        self._row = 0
        self._receive: Receiver | None = None
        self._parts: dict[int, list[SiteGradient]] = {}
        self._received: set[int] = set()
        self._outputs: Tensor | None = None

    def hooks(self) -> list[RemovableHandle]:
        """Set the forward hooks, one per module in which sites act.

        Returns:
            Handles that remove them.
        """
        head = output_embeddings(self.model)
        inside = set() if head is None else {id(module) for module in head.modules()}
        placed: dict[nn.Module, list[_Placed]] = {}
        for index, site in enumerate(self.sites):
            for use in site.uses:
                placed.setdefault(use.hooked, []).append((index, use, id(use.hooked) in inside))
        return [module.register_forward_hook(self._make_hook(uses)) for module, uses in placed.items()]

    def forward(self, rows: ModelRows, draw: Draw | None = None) -> Reading:
        """Run the model on a batch and keep its graph for :meth:`rows`.

        Args:
            rows: The batch.
            draw: Random numbers that belong to examples, for sampled labels.

        Returns:
            What was read, detached.

        Raises:
            UnsupportedAdapterError: A site did not run.
        """
        self._mixing = None
        self._draw = draw
        if rows.count == 1 and rows.mask is not None:
            # Without its padding, everything is this row's, and its tokens cannot be taken for something else.
            rows = dataclasses.replace(next(single_rows(rows)), places=rows.places)
        reading = self._read(rows, draw)
        require_finite(reading.outputs, self.model, lambda: self.readout.read(self.model, rows, draw))
        for index, count in self._ran.items():
            if count == 0:
                raise UnsupportedAdapterError(
                    f"{self.sites[index].name} did not run in a forward pass; retrain without this module."
                )
        self._outputs = reading.outputs
        if self._mixing is not None:
            warnings.warn(
                f"{self._mixing} sees something that all rows of a batch share, not examples and tokens: rows run one "
                "by one, which is exact and slower. Retrain without this module if that takes too long.",
                stacklevel=2,
            )
            # The graph of the batch is of no use.
            self._outputs = reading.outputs.detach()
            self._probes.clear()
        return reading.detached()

    def _read(self, rows: ModelRows, draw: Draw | None) -> Reading:
        self._rows = rows
        self._ran = dict.fromkeys(range(len(self.sites)), 0)
        self._forwarding = True
        with torch.inference_mode(False), torch.enable_grad():
            reading = self.readout.read(self.model, rows, draw)
        self._forwarding = False
        return reading

    def rows(self, cotangents: Tensor | None, receive: Receiver) -> None:
        """Run one backward pass per cotangent and hand every site's gradients on.

        Args:
            cotangents: (B, K, M) M combinations of the logits for every example; None for the options themselves,
                where every option has a row of its own.
            receive: Called once per site and cotangent, from inside the backward pass.

        Raises:
            UnsupportedAdapterError: The logits do not depend on a site.
        """
        assert self._outputs is not None and self._rows is not None
        rows, outputs = self._rows, self._outputs
        if rows.places is not None:
            passes = [torch.ones_like(outputs)]
        else:
            assert cotangents is not None
            passes = list(cotangents.to(outputs.dtype).unbind(dim=-1))

        def hand_on(gradient: MatrixGradient) -> None:
            if rows.places is None:
                receive(gradient)
                return
            for combination in OptionGradients(gradient, rows.places, cotangents).combinations():
                receive(combination)

        if self._mixing is None:
            missing = self._backward(outputs, passes, hand_on)
        else:
            missing = self._singly(rows, passes, hand_on)
        if missing:
            raise UnsupportedAdapterError(
                f"the logits do not depend on {self.sites[min(missing)].name}; retrain without this module."
            )
        self.release()

    def _backward(self, outputs: Tensor, passes: Sequence[Tensor], receive: Receiver) -> set[int]:
        """Run backward passes and return the positions of sites that one of them did not reach."""
        self._receive = receive
        missing: set[int] = set()
        probes = list(self._probes.values())
        for self._row, cotangent in enumerate(passes):
            self._received, self._parts = set(), {}
            # The forward pass may run under autocast; sums over gradients are not to be rounded by it.
            with torch.autocast(outputs.device.type, enabled=False):
                torch.autograd.grad(outputs, probes, cotangent, retain_graph=self._row < len(passes) - 1)
                for parts in self._parts.values():
                    self._hand_on(parts)
            missing |= set(range(len(self.sites))) - self._received
        return missing

    def _singly(self, rows: ModelRows, passes: Sequence[Tensor], receive: Receiver) -> set[int]:
        """Let the rows go through the model one by one, and hand their gradients on together."""
        found: list[dict[tuple[int, int], MatrixGradient]] = []
        for position, single in enumerate(single_rows(rows)):
            outputs = self._read(single, draw_of(self._draw, position)).outputs
            met: list[MatrixGradient] = []
            self._backward(outputs, [cotangent[position : position + 1] for cotangent in passes], met.append)
            found.append({(gradient.index, gradient.row): gradient for gradient in met})
            self._probes.clear()
        missing = set()
        for row, index in itertools.product(range(len(passes)), range(len(self.sites))):
            if not any((index, row) in met for met in found):
                missing.add(index)
                continue
            parts = [met.get((index, row)) or nothing_at(self.sites[index], index, row, passes[row]) for met in found]
            with torch.autocast(passes[row].device.type, enabled=False):
                receive(JoinedGradient(index, row, parts))
        return missing

    def release(self) -> None:
        """Drop the graph and everything that refers to it."""
        self._outputs = self._receive = self._rows = self._draw = None
        self._forwarding = False
        self._parts = {}
        self._probes.clear()

    def _make_hook(self, placed: Sequence[_Placed]) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        def on_forward(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            uses = [entry for entry in placed if entry[1].counts(args)]
            if not uses:
                return output
            for index, _use, at_head in uses:
                # Not where gradient checkpointing runs a layer again.
                if self._forwarding:
                    self._ran[index] += 1
                    self._look_for_mixing(index, args, output, at_head)
            kept = [use.keep(args, output).detach() for _, use, _ in uses]

            def on_backward(gradient: Tensor, saved: Sequence[Tensor]) -> None:
                for (index, use, at_head), tensor in zip(uses, saved, strict=True):
                    self._met(index, use, at_head, tensor, gradient)

            # The backward pass is asked for the gradient of a number that every site's output depends on. So it
            # reaches every site, whatever was frozen, and autograd keeps one number instead of the gradients.
            return _Tap.apply(output, self._probe(output), on_backward, *kept)

        return on_forward

    def _met(self, index: int, use: Use, at_head: bool, kept: Tensor, gradient: Tensor) -> None:
        if self._receive is None:
            return
        assert self._rows is not None
        site = self.sites[index]
        mask = self._mask_for(index, gradient, at_head)
        if mask is not None:
            gradient = gradient.masked_fill(~mask[..., None], 0.0)
        inputs, g = use.tokens(kept, gradient)
        if self._mixing:
            # Whatever its shape, all of it is this one row's.
            inputs = inputs.reshape(1, -1, *inputs.shape[gradient.dim() - 1 :])
            g = g.reshape(1, -1, g.shape[-1])
        elif gradient.dim() == 2:
            inputs, g = inputs[:, None], g[:, None]
        if site.trained_in_full and g.shape[1] > 1:
            # A head applied at every token but read at one acts on that one: the others are no data.
            used = (g != 0).any(dim=-1)
            mask = used if mask is None else mask & used
        if site.rows is not None:
            g = g[..., site.rows.to(g.device)]
        columns = site.in_features if site.one_hot and not inputs.is_floating_point() else None
        part = SiteGradient(index, self._row, inputs, g, mask, site.bias is not None, columns)
        parts = self._parts.setdefault(index, [])
        parts.append(part)
        if len(parts) == self._ran[index]:
            del self._parts[index]
            self._hand_on(parts)

    def _hand_on(self, parts: Sequence[SiteGradient]) -> None:
        assert self._receive is not None
        self._received.add(parts[0].index)
        self._receive(parts[0] if len(parts) == 1 else SharedGradient(parts))

    def _look_for_mixing(self, index: int, args: Sequence[Any], output: Tensor, at_head: bool) -> None:
        """Notice where an output cannot be matched to the batch's rows and tokens."""
        if isinstance(args[0], nn.Parameter):  # a table by itself, which may have as many rows as the batch
            self._mixing = self.sites[index].name
        if self._mixing is None:
            try:
                self._mask_for(index, output, at_head)
            except UnsupportedInputError:
                self._mixing = self.sites[index].name

    def _mask_for(self, index: int, output: Tensor, at_head: bool) -> Tensor | None:
        assert self._rows is not None
        try:
            return self._rows.mask_for(self.sites[index].name, output.shape[:-1], at_head)
        except UnsupportedInputError:
            if self._mixing is None:
                raise
            return None  # a single row without padding

    def _probe(self, output: Tensor) -> Tensor:
        key = (output.device, output.dtype)
        if key not in self._probes:
            self._probes[key] = torch.zeros((), device=output.device, dtype=output.dtype, requires_grad=True)
        return self._probes[key]


class _Tap(torch.autograd.Function):
    """Passes a module's output on, and in the backward pass hands its gradient to a function.

    What the function needs of the forward call is saved as autograd saves it: gradient checkpointing frees it and
    computes it anew, and a change in place is noticed.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, probe: Tensor, receive: Callable[..., None], *kept: Tensor) -> Tensor:
        ctx.receive = receive
        ctx.probe = probe.new_zeros(())
        ctx.save_for_backward(*kept)
        # The same memory, but no view to autograd: a model may change its layers' outputs in place.
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        saved = ctx.saved_tensors  # once: gradient checkpointing gives them only once
        ctx.receive(gradient, saved)
        return (gradient, ctx.probe, None, *(None for _ in saved))
