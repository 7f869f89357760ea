"""The case that every tool is given: one model's weights and a few batches, in a file that every process reads.

The model is the 30M-parameter Llama of ``common.py`` with LoRA (r=8) on q_proj and v_proj, dropout 0, and a
classification head that PEFT trains in full. Four batches of eight texts of 96 tokens are the training data, one more
is the test data.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1]))

from common import llama_30m, random_batch

Batch = dict[str, Tensor]
Parameters = Literal["all", "lora"]

TRAIN_BATCHES = 4
BATCH_SIZE = 8
LENGTH = 96
PRIOR_PRECISION = 1.0


@dataclass(frozen=True)
class Case:
    """Batches of the case."""

    train: list[Batch]
    test: Batch
    tiny: Batch
    classes: int


def write_case(folder: Path, classes: int, length: int = LENGTH) -> None:
    """Write the weights and the batches that all processes share."""
    model = llama_30m(classes)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, _weights(folder, classes))
    batches = {f"train{i}": random_batch(model, classes, BATCH_SIZE, length, seed=1 + i) for i in range(TRAIN_BATCHES)}
    batches["test"] = random_batch(model, classes, BATCH_SIZE, length, seed=0)
    # Two texts, because bayesian-lora's variance() drops a batch dimension of one.
    batches["tiny"] = random_batch(model, classes, 2, 8, seed=99)
    flat = {f"{name}.{key}": tensor for name, batch in batches.items() for key, tensor in batch.items()}
    save_file(flat, folder / f"batches{classes}.safetensors")


def read_case(folder: Path, classes: int) -> Case:
    """Read the batches."""
    batches: dict[str, Batch] = {}
    for name, tensor in load_file(folder / f"batches{classes}.safetensors").items():
        batch, key = name.split(".")
        batches.setdefault(batch, {})[key] = tensor
    train = [batches[f"train{i}"] for i in range(TRAIN_BATCHES)]
    return Case(train, batches["test"], batches["tiny"], classes)


def read_model(folder: Path, classes: int, attention: str = "sdpa", parameters: Parameters = "all") -> nn.Module:
    """Read the model; with ``parameters="lora"`` its head is frozen."""
    model = llama_30m(classes)
    model.load_state_dict(load_file(_weights(folder, classes)))
    model.get_base_model().set_attn_implementation(attention)
    if parameters == "lora":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and "lora_" in name)
    return model.eval()


def inputs_of(batch: Batch) -> Batch:
    """Return what the model reads."""
    return {key: tensor for key, tensor in batch.items() if key != "labels"}


def centred(covariance: Tensor) -> Tensor:
    """Return H C H with H = I - 11^T/K: softmax ignores a shift of all logits, and so does this."""
    classes = covariance.shape[-1]
    projector = torch.eye(classes, dtype=torch.float64) - 1.0 / classes
    return projector @ covariance.double() @ projector


def _weights(folder: Path, classes: int) -> Path:
    return folder / f"weights{classes}.safetensors"
