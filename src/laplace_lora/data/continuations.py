"""Texts that continue a context, token by token as a language model reads them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Continuation:
    """A context and what follows it.

    Attributes:
        tokens: Of both.
        start: Position of the continuation's first token.
        cut: Whether the context lost its beginning.
        refusal: What is wrong, or an empty text.
    """

    tokens: list[int]
    start: int
    cut: bool = False
    refusal: str = ""


def continue_text(
    tokenizer: Any, context: str, rest: str, max_length: int | None, end: int | None, chat: bool = False
) -> Continuation:
    """Tokenise a text that continues another.

    As lm-evaluation-harness does: blanks at the end of the context belong to the continuation, both are tokenised
    together, and the continuation is what is longer than the context by itself.

    Args:
        tokenizer: A Hugging Face tokenizer.
        context: What comes first.
        rest: The continuation.
        max_length: Most tokens; the context loses its beginning, the continuation nothing.
        end: Token to put at the end; None for none.
        chat: Whether the context comes from a chat template: it has its special tokens, and ends where the answer
            begins.

    Returns:
        The tokens.
    """
    kept = context if chat else context.rstrip() or context
    rest = rest.lstrip() if chat else rest
    before, whole = (_tokens(tokenizer, text, not chat) for text in (kept, context + rest))
    closing = tokenizer.eos_token_id
    if before and before[-1] == closing and whole[-1:] == [closing]:  # a tokenizer that closes every text
        before, whole = before[:-1], whole[:-1]
    if end is not None and whole[-1:] != [end]:
        whole = [*whole, end]
    if len(whole) <= len(before):
        return Continuation(whole, 0, refusal="the continuation has no tokens in this vocabulary; remove the row.")
    if not before:
        return Continuation(whole, 0, refusal="the context has no tokens, and nothing precedes the text; write one.")
    cut = 0 if max_length is None else max(0, len(whole) - max_length)
    if cut >= len(before):
        return Continuation(
            whole,
            len(before),
            refusal=f"the continuation alone takes {len(whole) - len(before)} tokens and may take {max_length} with "
            "its context; give a larger --max-length.",
        )
    first = 1 if before[0] == tokenizer.bos_token_id and cut else 0  # the beginning is cut behind its marker
    if first and cut >= len(before) - 1:
        first = 0
    tokens = whole[:first] + whole[first + cut :]
    return Continuation(tokens, len(before) - cut, cut > 0)


def pad_tokens(texts: Sequence[Continuation], padding: int, side: str) -> dict[str, Tensor]:
    """Pad texts to one length.

    Args:
        texts: At least one.
        padding: The padding token.
        side: ``left`` or ``right``.

    Returns:
        (B, T) ``input_ids``, ``attention_mask`` and ``completion_mask``, 1 at continuations.
    """
    longest = max(len(text.tokens) for text in texts)
    shape = (len(texts), longest)
    batch = {
        "input_ids": torch.full(shape, padding),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "completion_mask": torch.zeros(shape, dtype=torch.long),
    }
    for row, text in enumerate(texts):
        count = len(text.tokens)
        begin = longest - count if side == "left" else 0
        batch["input_ids"][row, begin : begin + count] = torch.tensor(text.tokens)
        batch["attention_mask"][row, begin : begin + count] = 1
        batch["completion_mask"][row, begin + text.start : begin + count] = 1
    return batch


def _tokens(tokenizer: Any, text: str, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])
