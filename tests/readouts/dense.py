"""Dense fp64 oracles of readouts: one unpadded example or option at a time, one output at a time, by autograd.

Nothing here imports ``laplace_lora``. An *outputs* function maps a model and an example to its K outputs, with their
graph; it may run the model several times (once per option).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import oracles
from oracles import Block, DensePosterior

Outputs = Callable[[nn.Module, Any], Tensor]


# --- outputs -----------------------------------------------------------------------------------------------------


def run(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the logits of one text."""
    return model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]


def answer_logits(token_ids: Sequence[int]) -> Outputs:
    """Return the logits of answer tokens after the text."""
    return lambda model, example: run(model, example["input_ids"])[-1, list(token_ids)]


def text_log_probability(model: nn.Module, context: Tensor, text: Tensor) -> Tensor:
    """Return log p(text | context), token after token."""
    logits = run(model, torch.cat([context, text]))
    total = torch.zeros((), dtype=torch.float64)
    for step, token in enumerate(text):
        total = total + logits[len(context) - 1 + step].log_softmax(0)[token]
    return total


def option_scores(normalise: str = "none") -> Outputs:
    """Return every option's log-likelihood after the context."""

    def outputs(model: nn.Module, example: Any) -> Tensor:
        scores = []
        for text, characters in zip(example["texts"], example["lengths"], strict=True):
            divisor = {"none": 1, "tokens": len(text), "characters": characters}[normalise]
            scores.append(text_log_probability(model, example["context"], text) / divisor)
        return torch.stack(scores)

    return outputs


def choice_logits(model: nn.Module, example: Any) -> Tensor:
    """Return a multiple-choice model's logits: one option per call."""
    logits = []
    for text in example["texts"]:
        ids = torch.cat([example["context"], text])
        logits.append(model(input_ids=ids[None, None], attention_mask=torch.ones_like(ids)[None, None]).logits[0, 0])
    return torch.stack(logits)


def scalar(model: nn.Module, example: Any) -> Tensor:
    """Return the one output."""
    return run(model, example["input_ids"])


def rewards(model: nn.Module, pair: Any) -> Tensor:
    """Return the rewards of a pair of texts."""
    return torch.cat([run(model, ids) for ids in pair])


# --- Jacobians ---------------------------------------------------------------------------------------------------


def jacobian(model: nn.Module, example: Any, outputs: Outputs, among: Sequence[Block]) -> tuple[Tensor, Tensor]:
    """Return the outputs (K,) and their Jacobian (K, P)."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    values = outputs(model, example)
    rows = []
    for value in values:
        gradients = torch.autograd.grad(value, list(trainable.values()), retain_graph=True)
        named = {name: gradient[None] for name, gradient in zip(trainable, gradients, strict=True)}
        rows.append(torch.cat([oracles.block_jacobian(named, block).flatten() for block in among]))
    return values.detach(), torch.stack(rows)


def parts(
    model: nn.Module, example: Any, outputs: Outputs, root: Callable[[Tensor], Tensor], among: Sequence[Block]
) -> dict[str, oracles.Part]:
    """Return each block's inputs (T, in) and the root's gradients (columns, T, out), over all calls of the example.

    Layers after which positions are picked (output embeddings, heads applied everywhere) have only the positions that
    enter an output.
    """
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {block.name: [] for block in among}
    handles = []
    for block in among:
        seen = calls[block.name]
        handles.append(
            model.get_submodule(block.layer).register_forward_hook(
                lambda _, inputs, output, seen=seen: seen.append((inputs[0], output))
            )
        )
    try:
        values = outputs(model, example)
    finally:
        for handle in handles:
            handle.remove()
    columns = root(values.detach())
    found = {}
    for block in among:
        xs, gs = [], []
        for x, output in calls[block.name]:
            rows = [torch.autograd.grad(v, output, retain_graph=True, allow_unused=True)[0] for v in values]
            zero = torch.zeros_like(output)
            g = torch.stack([zero if row is None else row for row in rows]).flatten(1, -2)
            x = x.detach().flatten(0, -2)
            if block.head or "lm_head" in block.name:
                used = g.abs().amax(dim=(0, 2)) > 0
                x, g = x[used], g[:, used]
            xs.append(torch.cat([x, torch.ones_like(x[:, :1])], dim=1) if block.bias is not None else x)
            gs.append(g)
        found[block.name] = (torch.cat(xs), torch.einsum("kr,kto->rto", columns, torch.cat(gs, dim=1)))
    return found


# --- posteriors --------------------------------------------------------------------------------------------------


def posterior(
    model: nn.Module,
    examples: Sequence[Any],
    outputs: Outputs,
    structure: str,
    *,
    kfac: str = "fitted",
    noise_variance: float | None = None,
    root: Callable[[Tensor], Tensor] | None = None,
    label: Callable[[Any], Tensor] | None = None,
    among: Sequence[Block] | None = None,
) -> DensePosterior:
    """Build the dense posterior.

    Args:
        model: The PEFT model.
        examples: Training data.
        outputs: The readout.
        structure: ``exact``, ``diag`` or ``kron``.
        kfac: Rule of the Kronecker factors.
        noise_variance: Of a Gaussian likelihood; None for the categorical.
        root: Columns R of the curvature R R^T at given outputs; the likelihood's own if not given.
        label: An example's label, for the log-likelihood.
        among: Blocks covered; all if not given.

    Returns:
        The posterior.
    """
    among = oracles.blocks(model) if among is None else among
    root = root or (lambda f: oracles.root_symmetric(f, noise_variance))
    values = [oracles.weights(model, block).flatten() for block in among]
    sizes = tuple(len(value) for value in values)
    total = 0.0
    ggn = torch.zeros(sum(sizes), sum(sizes), dtype=torch.float64)
    collected: dict[str, list[oracles.Part]] = {block.name: [] for block in among}
    for example in examples:
        f, j = jacobian(model, example, outputs, among)
        rows = root(f).T @ j
        ggn += rows.T @ rows
        if structure in ("kron", "ekfac"):
            for name, part in parts(model, example, outputs, root, among).items():
                collected[name].append(part)
        if label is not None:
            total += float(oracles.log_likelihood(f, label(example), noise_variance))
    if structure in ("kron", "ekfac"):
        block_of = oracles.corrected_block if structure == "ekfac" else oracles.kronecker_block
        ggn = torch.block_diag(*(block_of(collected[block.name], kfac) for block in among))
    elif structure == "diag":
        ggn = torch.diag(ggn.diagonal())
    elif structure == "isotropic":
        ggn = torch.diag(torch.cat([part.mean().expand(len(part)) for part in ggn.diagonal().split(list(sizes))]))
    return DensePosterior(tuple(among), sizes, ggn, torch.cat(values), total)


def functional(
    dense: DensePosterior, model: nn.Module, examples: Sequence[Any], outputs: Outputs, deltas: oracles.Deltas
) -> tuple[list[Tensor], list[Tensor]]:
    """Return every example's outputs (K,) and their covariance J P^-1 J^T (K, K)."""
    covariance = dense.covariance(deltas)
    means, covariances = [], []
    for example in examples:
        f, j = jacobian(model, example, outputs, dense.blocks)
        means.append(f)
        covariances.append(j @ covariance @ j.T)
    return means, covariances


def centred(covariance: Tensor) -> Tensor:
    """Return H C H, H = I - 11^T/K."""
    size = covariance.shape[-1]
    h = torch.eye(size, dtype=torch.float64) - 1.0 / size
    return h @ covariance @ h
