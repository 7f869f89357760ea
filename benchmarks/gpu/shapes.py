"""Models of random weights in the shape of known ones, made on the device itself in a few seconds."""

import dataclasses
from pathlib import Path

import peft
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

LORA_TARGETS = ("q_proj", "v_proj", "lm_head")
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a Llama and of its batches.

    Attributes:
        hidden: Width.
        intermediate: Width of the MLP.
        layers: Number of layers.
        heads: Number of attention heads.
        key_value_heads: Number of key and value heads.
        vocabulary: Number of tokens.
        length: Tokens per text.
        rank: LoRA rank.
        dtype: Of the base; PEFT keeps the adapter of a half-precision base in float32.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    length: int
    rank: int
    dtype: str

    @property
    def parameters(self) -> int:
        """Number of the base's weights."""
        key_value = self.hidden * self.key_value_heads // self.heads
        attention = 2 * self.hidden**2 + 2 * self.hidden * key_value
        return 2 * self.vocabulary * self.hidden + self.layers * (attention + 3 * self.hidden * self.intermediate)

    def bytes_needed(self, batch: int) -> int:
        """Estimate what the largest measurement holds.

        Args:
            batch: Texts per batch.
        """
        width = 4 if self.dtype == "float32" else 2
        tokens = batch * self.length
        # Held for the backward pass: attention's and the MLP's operands, norms in float32, and the adapter's
        # inputs in float32. A fair guess from above; what it is good for is refusing in one line.
        held = self.layers * tokens * (width * (12 * self.hidden + 4 * self.intermediate) + 8 * self.hidden)
        return int(1.1 * (width * self.parameters + held)) + 2 * GIB * (self.hidden > 1024)


SHAPES = {
    "7b": Shape(4096, 11008, 32, 32, 32, 32000, 300, 8, "bfloat16"),  # as Llama-2-7B
    "1b": Shape(2048, 5632, 22, 32, 4, 32000, 300, 8, "bfloat16"),  # as TinyLlama-1.1B
    "tiny": Shape(64, 128, 2, 4, 4, 256, 32, 4, "float32"),  # to prove the script on any machine
}


def build_model(shape: Shape, device: torch.device) -> nn.Module:
    """Make a causal language model with LoRA on q, v and the output embeddings, away from lora_B = 0.

    Args:
        shape: Its sizes.
        device: Where its weights are drawn.

    Returns:
        The PEFT model, in eval mode.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    before = torch.get_default_dtype()
    try:
        # Weights come into being in their final dtype on their device: 27 GB of float32 never exist on the host.
        torch.set_default_dtype(getattr(torch, shape.dtype))
        with device:
            base = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", r=shape.rank, lora_alpha=16, lora_dropout=0.0, target_modules=list(LORA_TARGETS)
    )
    model = peft.get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def answer_tokens(shape: Shape, classes: int) -> list[int]:
    """Choose the tokens that stand for the answers."""
    return [shape.vocabulary // 2 + 3 * k for k in range(classes)]


def make_batch(shape: Shape, classes: int, size: int, seed: int, device: torch.device) -> dict[str, Tensor]:
    """Draw a batch without padding, already on the device: copies to it are no part of what is compared.

    Args:
        shape: The model's sizes.
        classes: Number of answers.
        size: Number of texts.
        seed: Of the draw.
        device: Where to.

    Returns:
        Inputs and labels.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "input_ids": torch.randint(5, shape.vocabulary, (size, shape.length), generator=generator),
        "attention_mask": torch.ones(size, shape.length, dtype=torch.long),
        "labels": torch.randint(0, classes, (size,), generator=generator),
    }
    return {name: value.to(device) for name, value in batch.items()}


def free_bytes(device: torch.device) -> int | None:
    """Return how much memory is free on a device; None where that cannot be known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = (line.split() for line in meminfo.read_text().splitlines())
    return next((1024 * int(field[1]) for field in fields if field[0] == "MemAvailable:"), None)


def require_memory(name: str, shape: Shape, batch: int, device: torch.device) -> None:
    """End with one line where a size cannot fit.

    Args:
        name: The size's name.
        shape: The size.
        batch: Texts in the largest batch.
        device: The device.

    Raises:
        SystemExit: There is too little memory.
    """
    needed, free = shape.bytes_needed(batch), free_bytes(device)
    if free is not None and needed > free:
        raise SystemExit(
            f"size {name} at batches of {batch} needs about {needed / GIB:.0f} GiB, and {device.type} has "
            f"{free / GIB:.0f} GiB free; choose a smaller --size ({', '.join(SHAPES)}) or smaller --batches."
        )
