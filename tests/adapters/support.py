"""What the tests of the table share: texts, padded batches, cached models with their oracles, and fitting."""

import functools
from collections.abc import Sequence

import peft
import torch
from torch import Tensor, nn

from adapters.generic_oracle import Oracle, oracle
from adapters.variants import ANSWERS, CLASSES, ROWS, VOCAB, Row
from laplace_lora import LaplaceConfig, LaplaceLoRA
from tiny_models import Batch, Example

DELTA = 0.8
TRAIN, TEST = 5, 3


def examples(row: Row, count: int, seed: int = 0) -> list[Example]:
    """Draw texts of 2 to 9 tokens; the padding token is among them only where the row asks for it."""
    generator = torch.Generator().manual_seed(50 + seed)
    drawn = []
    for index in range(count):
        length = int(torch.randint(2, 10, (), generator=generator))
        tokens = torch.randint(3, VOCAB, (length,), generator=generator)
        if row.pads_inside and index % 2 == 0:
            tokens[1] = row.pad
        drawn.append({"input_ids": tokens, "labels": torch.randint(0, CLASSES, (), generator=generator)})
    return drawn


def collate(row: Row, texts: Sequence[Example], side: str = "right") -> Batch:
    """Pad on one side."""
    longest = max(len(text["input_ids"]) for text in texts)
    ids = torch.full((len(texts), longest), row.pad)
    mask = torch.zeros_like(ids)
    for index, text in enumerate(texts):
        length = len(text["input_ids"])
        where = slice(0, length) if side == "right" else slice(longest - length, longest)
        ids[index, where], mask[index, where] = text["input_ids"], 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.stack([text["labels"] for text in texts])}


def data(row: Row) -> tuple[list[Example], list[Example]]:
    """Return training and test texts."""
    return examples(row, TRAIN), examples(row, TEST, seed=9)


def fitted(row: Row, model: nn.Module, structure: str, side: str = "right") -> LaplaceLoRA:
    """Fit to padded batches of three."""
    config = LaplaceConfig(structure=structure, prior_precision=DELTA, progress=False)
    train = examples(row, TRAIN)
    return LaplaceLoRA(model, config, row.readout).fit([collate(row, train[i : i + 3], side) for i in (0, 3)])


def answer(model: nn.Module, example: Example) -> Tensor:
    """The three logits of the answers after one unpadded text."""
    ids = example["input_ids"][None]
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1, list(ANSWERS)]


def class_logits(model: nn.Module, example: Example) -> Tensor:
    """The logits of one unpadded text."""
    ids = example["input_ids"][None]
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]


@functools.cache
def shared(name: str) -> tuple[peft.PeftModel, Oracle]:
    """Build a row's model, which is not to be changed, and its oracle."""
    row = ROWS[name]
    model = row.build()
    trained = model if row.trained is None else row.trained()
    train, test = data(row)
    reader, rows = (answer, ("lm_head", ANSWERS)) if row.answers else (class_logits, None)
    return model, oracle(trained, train, test, reader, rows)
