"""Multiple choice by a causal language model: the logits of answer tokens after the prompt."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from laplace_lora.errors import LaplaceLoRAError, UnsupportedInputError, first_line
from laplace_lora.readouts.base import Readout, plain_rows
from laplace_lora.readouts.language_head import check_language_model, logits_at_positions
from laplace_lora.readouts.rows import Draw, ModelRows, Reading, last_positions


class AnswerTokens(Readout):
    """The K logits of answer tokens at the last real position of a causal language model (the paper's set-up).

    Labels are 0 to K-1, positions in ``token_ids``. The output embeddings run at that position alone; with LoRA on
    them, the posterior covers the K rows that the answers depend on. Padding may be on either side.
    """

    name = "answer_tokens"

    def __init__(self, token_ids: Sequence[int]) -> None:
        """Set the answers.

        Args:
            token_ids: K different tokens, at least 2, in the order of the classes; for words, see :meth:`of_words`.

        Raises:
            LaplaceLoRAError: There are fewer than two, or one is given twice or is no token.
        """
        try:
            ids = [operator.index(token) for token in token_ids]
        except TypeError:
            ids = []
        if len(ids) < 2 or len(set(ids)) != len(ids) or min(ids) < 0:
            raise LaplaceLoRAError(
                f"answer tokens {token_ids!r} are not two or more different tokens; give one per class."
            )
        self.token_ids = tuple(ids)

    @classmethod
    def of_words(cls, tokenizer: Any, words: Sequence[str], prompt: str = "Answer:") -> "AnswerTokens":
        """Take words as answers.

        Args:
            tokenizer: The model's tokenizer.
            words: One per class.
            prompt: How prompts end: words are tokenised as what follows it.

        Returns:
            The readout.
        """
        return cls(answer_token_ids(tokenizer, words, prompt))

    @property
    def head_rows(self) -> Tensor:
        """Rows of the output embeddings that the logits depend on."""
        return torch.tensor(self.token_ids)

    def settings(self) -> dict[str, Any]:
        """See :meth:`Readout.settings`."""
        return {"token_ids": list(self.token_ids)}

    def check_model(self, model: nn.Module) -> None:
        """Refuse what is no causal language model, or has fewer tokens.

        Args:
            model: The PEFT model.

        Raises:
            UnsupportedInputError: It cannot be read this way.
        """
        check_language_model(type(self).__name__, model)
        embeddings: Any = getattr(model, "get_input_embeddings")()  # noqa: B009 - nn.Module is typed, PEFT is not
        tokens = embeddings.weight.shape[0]
        if max(self.token_ids) >= tokens:
            raise UnsupportedInputError(
                f"answer token {max(self.token_ids)} is beyond the model's {tokens} tokens; use the tokenizer that the "
                "adapter was trained with."
            )

    def rows(self, batch: Mapping[str, Tensor], labels: Tensor | None) -> ModelRows:
        """See :meth:`Readout.rows`: read at the last real position."""
        plain = plain_rows(batch)
        tokens = next(value for value in batch.values() if value.dim() >= 2)
        positions = last_positions(plain.mask, tokens.shape[:2], tokens.device)
        return ModelRows(plain.inputs, plain.count, plain.mask, positions=positions)

    def read(self, model: nn.Module, rows: ModelRows, draw: Draw | None = None) -> Reading:
        """See :meth:`Readout.read`: (B, K) logits."""
        logits = logits_at_positions(type(self).__name__, model, rows)[:, 0]
        return Reading(logits[:, torch.tensor(self.token_ids, device=logits.device)])


def answer_token_ids(tokenizer: Any, words: Sequence[str], prompt: str = "Answer:") -> list[int]:
    """Tokenise answers as they follow a prompt.

    After a prompt that ends in white space the words follow directly; else after a blank or, where that makes
    several tokens of a word, without one.

    Args:
        tokenizer: The model's tokenizer.
        words: One per class.
        prompt: How prompts end.

    Returns:
        One token per word.

    Raises:
        LaplaceLoRAError: A word is several tokens, which are named, or unknown, or two words are the same one.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    found: dict[str, list[int]] = {}
    for blank in ("",) if prompt[-1:].isspace() or not prompt else (" ", ""):
        found = {word: _following(tokenizer, prompt, blank + word) for word in words}
        single = all(word.strip() and len(ids) == 1 and ids != [unknown] for word, ids in found.items())
        if single and len({token for (token,) in found.values()}) == len(words):
            return [tokens[0] for tokens in found.values()]
    shown = "; ".join(f"{word!r} is {tokenizer.convert_ids_to_tokens(ids)}" for word, ids in found.items())
    raise LaplaceLoRAError(
        f"answers must be one token each, different ones, after {prompt[-20:]!r}: {shown}; choose other words, such as "
        "letters, end the prompt in another way, or read the options' likelihoods (OptionScores; --readout options)."
    )


def _following(tokenizer: Any, prompt: str, text: str) -> list[int]:
    """Tokenise a text as it goes on after the prompt's own tokens."""
    # Where prompt and text are merged across their border, the text is tokenised after another one.
    for before in (prompt, "\n", "="):
        start, whole = _tokens(tokenizer, before), _tokens(tokenizer, before + text)
        if whole[: len(start)] == start:
            return whole[len(start) :]
    return _tokens(tokenizer, text)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    try:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # of the tokenizers library
        raise LaplaceLoRAError(
            f"{text[-40:]!r} cannot be made into tokens ({first_line(error)}); choose other answers or prompts."
        ) from None
