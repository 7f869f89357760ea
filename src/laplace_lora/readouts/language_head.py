"""The output embeddings of a causal language model, run at the positions that are read and nowhere else."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from laplace_lora.adapters import output_embeddings
from laplace_lora.errors import UnsupportedInputError
from laplace_lora.readouts.inputs import is_causal, prepare_inputs
from laplace_lora.readouts.rows import ModelRows, Targets


def check_language_model(name: str, model: nn.Module) -> None:
    """Refuse a model that is no causal language model.

    Args:
        name: The readout, for messages.
        model: The PEFT model.

    Raises:
        UnsupportedInputError: It has no output embeddings, or does not read from left to right.
    """
    if output_embeddings(model) is None or not is_causal(model):
        base: Any = getattr(model, "get_base_model", lambda: model)()
        raise UnsupportedInputError(
            f"{name} reads a causal language model, and {type(base).__name__} is none; load it with "
            "AutoModelForCausalLM, or use another readout."
        )


def logits_at_positions(name: str, model: nn.Module, rows: ModelRows) -> Tensor:
    """Run a causal language model, with logits at chosen positions only.

    The hidden states are picked before the output embeddings see them: no logits are made for other positions,
    whatever side the padding is on.

    Args:
        name: The readout, for messages.
        model: The PEFT model.
        rows: The batch, with positions (R, M).

    Returns:
        (R, M, tokens) logits in the model's dtype.

    Raises:
        UnsupportedInputError: The model does not call its output embeddings once on all hidden states.
    """
    assert rows.positions is not None
    with _picked(name, model, rows.positions, rows.count):
        outputs = model(**prepare_inputs(model, rows.inputs))
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or logits.shape[:2] != rows.positions.shape:
        raise UnsupportedInputError(
            f"{name} expects logits for each position, the model gave {type(outputs).__name__}; load it with "
            "AutoModelForCausalLM."
        )
    return logits


@contextlib.contextmanager
def _picked(name: str, model: nn.Module, positions: Tensor, count: int) -> Iterator[None]:
    head = output_embeddings(model)
    assert head is not None
    calls = 0

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal calls
        calls += 1
        hidden = args[0]
        if hidden.dim() != 3 or hidden.shape[0] != count:
            raise UnsupportedInputError(
                f"{name}: the output embeddings see {tuple(hidden.shape)} for {count} rows, which is not known here; "
                "use another readout."
            )
        index = positions.to(hidden.device)[..., None].expand(-1, -1, hidden.shape[2])
        return (hidden.gather(1, index), *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
    if calls != 1:
        raise UnsupportedInputError(
            f"{name}: the output embeddings ran {calls} times in one forward pass, not once; use another readout."
        )


def target_positions(tokens: Tensor, wanted: Tensor, mask: Tensor | None) -> tuple[Tensor, Targets]:
    """Find where tokens are predicted from: the real position before each.

    Args:
        tokens: (R, T) tokens.
        wanted: (R, T) True at tokens whose probability counts.
        mask: (R, T) True at real tokens, or None.

    Returns:
        (R, M) positions, in order, and the targets there. Tokens that no real one precedes are left out.
    """
    preceded = torch.zeros_like(wanted)
    preceded[:, 1:] = True if mask is None else mask[:, :-1]
    wanted = wanted & preceded
    most = max(1, int(wanted.sum(dim=1).max()))
    # Stable: wanted positions first, each group in its order.
    order = wanted.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    valid = wanted.gather(1, order)
    targets = tokens.gather(1, order).masked_fill(~valid, 0)
    return (order - 1).clamp(min=0), Targets(targets, valid)


def target_log_probabilities(logits: Tensor, targets: Targets) -> Tensor:
    """Sum the log-probabilities of every row's targets.

    Args:
        logits: (R, M, tokens).
        targets: The targets.

    Returns:
        (R,) in nats, in float32 or the logits' longer dtype.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = logits.gather(2, targets.tokens[..., None])[..., 0] - logits.logsumexp(dim=2)
    return chosen.masked_fill(~targets.mask, 0.0).sum(dim=1)


def target_probabilities(model: nn.Module, rows: ModelRows) -> Tensor:
    """Run a causal language model for the probabilities of all tokens at the targets' positions.

    Args:
        model: The PEFT model, in eval mode.
        rows: A batch with targets.

    Returns:
        (R, M, tokens) float64 probabilities.
    """
    return torch.softmax(logits_at_positions("NextToken", model, rows).double(), dim=-1)
