"""Batches of examples with several options each, a row of the model per option."""

from collections.abc import Mapping

import torch
from torch import Tensor

from laplace_lora.errors import UnsupportedInputError
from laplace_lora.readouts.base import real_tokens
from laplace_lora.readouts.rows import ModelRows, Places


def option_rows(name: str, batch: Mapping[str, Tensor]) -> tuple[ModelRows, Tensor]:
    """Lay out options as rows; those that are all padding are left out.

    Args:
        name: The readout, for messages.
        batch: (B, K, T) model inputs. Examples with fewer options have attention masks of 0 at the end.

    Returns:
        The rows, in a table of two options and more; and (R,) their positions among the batch's B K options.

    Raises:
        UnsupportedInputError: The batch has another shape, or an example has no options.
    """
    tokens = batch.get("input_ids")
    shape = tokens.shape if tokens is not None else next(iter(batch.values())).shape
    if len(shape) != 3 or any(value.shape[:2] != shape[:2] for value in batch.values()):
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in batch.items())
        raise UnsupportedInputError(
            f"{name} expects inputs of shape (examples, options, tokens), got {shapes}; collate the options of an "
            "example together, as transformers' DataCollatorForMultipleChoice does."
        )
    examples, options = shape[:2]
    mask = batch.get("attention_mask")
    present = torch.ones(examples, options, dtype=torch.bool, device=next(iter(batch.values())).device)
    if mask is not None:
        present = mask.bool().any(dim=2)
    if not bool(present[:, 0].all()) or bool((present[:, 1:] & ~present[:, :-1]).any()):
        raise UnsupportedInputError(
            f"{name}: an example has no options, or an empty one before others; list the options first, padding last."
        )
    place = present.flatten().nonzero()[:, 0]
    flat = {key: value.flatten(0, 1)[place] for key, value in batch.items()}
    # Where every example of a batch has one option, others may have more.
    table = max(options, 2)
    places = Places(place // options * table + place % options, examples, table)
    return ModelRows(flat, len(place), real_tokens(flat), places), place
