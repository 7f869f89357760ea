"""Texts to batches of token ids."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from laplace_lora.data.chat import chat_text
from laplace_lora.data.continuations import Continuation, continue_text, pad_tokens
from laplace_lora.data.layouts import CLASSES, Layout
from laplace_lora.data.scan import DataFile, Example
from laplace_lora.errors import DataFileError, LaplaceLoRAError, first_line, is_rust_panic
from laplace_lora.readouts import IGNORED


@dataclasses.dataclass
class Encoder:
    """Turns examples into token ids, always in the same way.

    Attributes:
        tokenizer: A Hugging Face tokenizer with a padding token.
        max_length: Most tokens of an input, special ones included; None for no limit.
        padding_side: ``left`` or ``right``.
        embeddings: Number of tokens that the model knows; not checked if None.
        layout: What an example's texts are to each other.
        continues: Whether the model reads from left to right: choices continue the text, where else the tokenizer
            joins the two.
        truncated: Inputs cut to ``max_length`` so far.
        chat: Whether prompts are put into the tokenizer's chat template.
        cut_at: Which end such inputs lost.
    """

    tokenizer: Any
    max_length: int | None
    padding_side: str
    embeddings: int | None = None
    layout: Layout = CLASSES
    continues: bool = False
    truncated: int = 0
    chat: bool = False
    cut_at: str = "end"

    def encode(self, examples: list[Example], name: str) -> dict[str, Tensor]:
        """Tokenise and pad one batch.

        Args:
            examples: At least one; all with a second text or none, all with a label or none.
            name: What messages call their file.

        Returns:
            (B, T) model inputs, (B, K, T) where examples have choices or are pairs; ``labels`` if the examples have
            them; and, where choices continue a text, ``completion_mask`` and ``option_lengths``.
        """
        encode: dict[str, Callable[[list[Example], str], dict[str, Tensor]]] = {
            "single": self._single,
            "choices": self._continued_choices if self.continues else self._joined_choices,
            "pair": self._pairs,
            "continuation": self._completions,
        }
        batch = encode[self.layout.parts](examples, name)
        if examples[0].label is not None:
            batch["labels"] = torch.tensor([example.label for example in examples])
        return batch

    def batches(self, file: DataFile, batch_size: int) -> "Batches":
        """Read a file batch by batch.

        Args:
            file: The file.
            batch_size: Rows per batch.

        Returns:
            An iterable with a length; every iteration reads the file anew.
        """
        return Batches(self, file, batch_size)

    def _single(self, examples: list[Example], name: str) -> dict[str, Tensor]:
        pairs = [example.pair for example in examples]
        lines = [example.line for example in examples]
        texts = [self._asked(example.text) for example in examples]
        return self._tokens(lines, texts, pairs if pairs[0] is not None else None, name)

    def _joined_choices(self, examples: list[Example], name: str) -> dict[str, Tensor]:
        lines = [example.line for example in examples for _ in example.choices]
        texts = [example.text for example in examples for _ in example.choices]
        seconds: list[str | None] = [choice for example in examples for choice in example.choices]
        return _nested(self._tokens(lines, texts, seconds, name), [len(example.choices) for example in examples])

    def _pairs(self, examples: list[Example], name: str) -> dict[str, Tensor]:
        if examples[0].pair is None:  # single texts, whose rewards are wanted
            closed = [self._closed(example.text) for example in examples]
            return self._tokens([example.line for example in examples], closed, None, name)
        lines = [example.line for example in examples for _ in range(2)]
        texts = [self._closed(text) for example in examples for text in (example.text, example.pair or "")]
        batch = self._tokens(lines, texts, None, name)
        same = (batch["input_ids"][::2] == batch["input_ids"][1::2]).all(dim=1).tolist()
        for example, equal in zip(examples, same, strict=True):
            if equal:
                raise DataFileError(
                    f"{name}:{example.line}: the chosen and the rejected text are the same {self.max_length or ''} "
                    "tokens; remove the row, or give a larger --max-length."
                )
        return _nested(batch, [2] * len(examples))

    def _asked(self, text: str) -> str:
        return chat_text(self.tokenizer, text) if self.chat else text

    def _closed(self, text: str) -> str:
        """End a text for a decoder, which is read at its end, as TRL's RewardTrainer does."""
        end = self.tokenizer.eos_token
        return text if not self.continues or not end or text.endswith(end) else text + end

    def _continued_choices(self, examples: list[Example], name: str) -> dict[str, Tensor]:
        found = [self._continue(e.line, e.text, choice, name) for e in examples for choice in e.choices]
        batch = pad_tokens(found, self.tokenizer.pad_token_id, self.padding_side)
        batch["option_lengths"] = torch.tensor([[len(c.strip())] for e in examples for c in e.choices])
        nested = _nested(batch, [len(example.choices) for example in examples])
        return nested | {"option_lengths": nested["option_lengths"][..., 0]}

    def _completions(self, examples: list[Example], name: str) -> dict[str, Tensor]:
        end = self.tokenizer.eos_token_id
        found = [self._continue(e.line, e.text, e.pair or "", name, end) for e in examples]
        batch = pad_tokens(found, self.tokenizer.pad_token_id, self.padding_side)
        counts = batch.pop("completion_mask").bool()
        return batch | {"labels": batch["input_ids"].masked_fill(~counts, IGNORED)}

    def _continue(self, line: int, text: str, rest: str, name: str, end: int | None = None) -> Continuation:
        try:
            found = continue_text(self.tokenizer, self._asked(text), rest, self.max_length, end, self.chat)
        except LaplaceLoRAError:
            raise
        except BaseException as error:  # tokenizers raises plain Exceptions and Rust's panics
            raise _untokenisable(error, f"{name}:{line}") from None
        if found.refusal:
            raise DataFileError(f"{name}:{line}: {found.refusal}")
        self._require_known(max(found.tokens), f"{name}:{line}")
        self.truncated += found.cut
        self.cut_at = "beginning"
        return found

    def _tokens(
        self, lines: Sequence[int], texts: list[str], pairs: Sequence[str | None] | None, name: str
    ) -> dict[str, Tensor]:
        where = f"{name}:{lines[0]}" + (f" to {lines[-1]}" if lines[-1] > lines[0] else "")
        side, limit, end = self.tokenizer.truncation_side, self.max_length, self._end(texts)
        keep_end = self.layout.keep_end and end is None
        self.cut_at = "beginning" if keep_end else "end"
        if end is not None:  # what is read is that token: a long text loses what stands before it
            texts = [text.removesuffix(end) for text in texts]
            limit = None if limit is None else limit - 1
        try:
            self.tokenizer.truncation_side = "left" if keep_end else side
            encoded = self.tokenizer(
                texts,
                text_pair=pairs,
                add_special_tokens=not self.chat,
                truncation=limit is not None,
                max_length=limit,
                return_attention_mask=True,
            )
            if encoded.encodings:
                cut = sum(1 for one in encoded.encodings if one.overflowing)
            else:  # tokenizers written in Python do not say
                whole = self.tokenizer(texts, text_pair=pairs, add_special_tokens=not self.chat)["input_ids"]
                cut = sum(limit is not None and len(ids) > limit for ids in whole)
            if end is not None:
                _append(encoded, self.tokenizer.eos_token_id)
            encoded = self.tokenizer.pad(
                encoded, padding=True, padding_side=self.padding_side, return_attention_mask=True, return_tensors="pt"
            )
        except BaseException as error:  # tokenizers raises plain Exceptions and Rust's panics
            raise _untokenisable(error, where) from None
        finally:
            self.tokenizer.truncation_side = side
        for line, length in zip(lines, encoded["attention_mask"].sum(dim=1).tolist(), strict=True):
            if length == 0:
                raise DataFileError(f"{name}:{line} has no tokens in this vocabulary; remove the row.")
        if self.max_length is not None and encoded["input_ids"].shape[1] > self.max_length:
            raise DataFileError(
                f"{where} cannot be cut to {self.max_length} tokens, which leave no room beside the special ones; give "
                "a larger --max-length."
            )
        self._require_known(int(encoded["input_ids"].max()), where)
        self.truncated += cut
        return dict(encoded)

    def _end(self, texts: Sequence[str]) -> str | None:
        """Return the end-of-sequence token where prompts end in it."""
        end = self.tokenizer.eos_token
        closed = self.layout.style == "answers" and bool(end) and all(text.endswith(end) for text in texts)
        return end if closed else None

    def _require_known(self, largest: int, where: str) -> None:
        if self.embeddings is not None and largest >= self.embeddings:
            raise DataFileError(
                f"{where} holds token {largest}, and the model has {self.embeddings} embeddings; use the tokenizer "
                "that the adapter was trained with, saved beside it."
            )


@dataclasses.dataclass(frozen=True)
class Batches:
    """A data file in batches, held one at a time.

    Attributes:
        encoder: Makes the batches.
        file: The file.
        batch_size: Rows per batch.
    """

    encoder: Encoder
    file: DataFile
    batch_size: int

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.file) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches in order."""
        examples = iter(self.file)
        while batch := list(islice(examples, self.batch_size)):
            yield self.encoder.encode(batch, self.file.name)


def _append(encoded: Any, token: int) -> None:
    """Put a token at the end of every text, where the tokenizer has not done so."""
    for row, ids in enumerate(encoded["input_ids"]):
        if ids[-1:] != [token]:
            ids.append(token)
            encoded["attention_mask"][row].append(1)
            if "token_type_ids" in encoded:
                encoded["token_type_ids"][row].append(0)


def _nested(batch: dict[str, Tensor], counts: Sequence[int]) -> dict[str, Tensor]:
    """Turn rows into (examples, most rows of an example, ...), with zeros where an example has fewer."""
    return {
        key: torch.nn.utils.rnn.pad_sequence(list(value.split(list(counts))), batch_first=True)
        for key, value in batch.items()
    }


def _untokenisable(error: BaseException, where: str) -> BaseException:
    """Return our error for one of a tokenizer; anything else, such as Ctrl-C, as it is."""
    if not isinstance(error, Exception) and not is_rust_panic(error):
        return error
    return DataFileError(
        f"{where} cannot be made into tokens ({first_line(error)}); mend the rows, or the tokenizer beside the adapter."
    )
