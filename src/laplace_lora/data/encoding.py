"""Texts to batches of token ids."""

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from laplace_lora.data.scan import DataFile, Example
from laplace_lora.errors import DataFileError, first_line, is_rust_panic


@dataclasses.dataclass
class Encoder:
    """Turns examples into token ids, always in the same way.

    Attributes:
        tokenizer: A Hugging Face tokenizer with a padding token.
        max_length: Most tokens of an input, special ones included; None for no limit.
        padding_side: ``left`` or ``right``.
        embeddings: Number of tokens that the model knows; not checked if None.
        truncated: Inputs cut to ``max_length`` so far.
    """

    tokenizer: Any
    max_length: int | None
    padding_side: str
    embeddings: int | None = None
    truncated: int = 0

    def encode(self, examples: list[Example], name: str) -> dict[str, Tensor]:
        """Tokenise and pad one batch.

        Args:
            examples: At least one; all with a second text or none, all with a label or none.
            name: What messages call their file.

        Returns:
            (B, T) model inputs, and (B,) ``labels`` if the examples have them.

        Raises:
            DataFileError: A text has no tokens, or tokens that the model does not know.
        """
        where = f"{name}:{examples[0].line}" + (f" to {examples[-1].line}" if len(examples) > 1 else "")
        pairs = [example.pair for example in examples]
        try:
            encoded = self.tokenizer(
                [example.text for example in examples],
                text_pair=pairs if pairs[0] is not None else None,
                truncation=self.max_length is not None,
                max_length=self.max_length,
                padding=True,
                padding_side=self.padding_side,
                return_attention_mask=True,
                return_tensors="pt",
            )
        except BaseException as error:  # tokenizers raises plain Exceptions and Rust's panics
            if not isinstance(error, Exception) and not is_rust_panic(error):
                raise
            raise DataFileError(
                f"{where} cannot be made into tokens ({first_line(error)}); mend the rows, or the tokenizer beside "
                "the adapter."
            ) from None
        for example, length in zip(examples, encoded["attention_mask"].sum(dim=1).tolist(), strict=True):
            if length == 0:
                raise DataFileError(f"{name}:{example.line} has no tokens in this vocabulary; remove the row.")
        if self.max_length is not None and encoded["input_ids"].shape[1] > self.max_length:
            raise DataFileError(
                f"{where} cannot be cut to {self.max_length} tokens, which leave no room beside the special ones; give "
                "a larger --max-length."
            )
        largest = int(encoded["input_ids"].max())
        if self.embeddings is not None and largest >= self.embeddings:
            raise DataFileError(
                f"{where} holds token {largest}, and the model has {self.embeddings} embeddings; use the tokenizer "
                "that the adapter was trained with, saved beside it."
            )
        self.truncated += sum(1 for one in encoded.encodings or () if one.overflowing)
        batch = dict(encoded)
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
