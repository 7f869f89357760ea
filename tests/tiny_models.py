"""Tiny classifiers with LoRA adapters, built from a configuration, and random token batches for them.

Nothing is downloaded. Weights are drawn large enough that every layer has curvature worth comparing, and the
Llama is patched to compute in double precision throughout, so that fp64 comparisons can be tight.
"""

from collections.abc import Iterator, Sequence

import peft
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
)

Example = dict[str, Tensor]
Batch = dict[str, Tensor]

VOCAB, PAD = 50, 0


class DoubleRMSNorm(nn.Module):
    """RMS norm without the detour through float32 that the library's own takes."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        """Share the weight of the norm that this one replaces."""
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)


class DoubleRotary(nn.Module):
    """Rotary angles in float64; the library's own are rounded to float32."""

    def __init__(self, head_dim: int, theta: float = 10_000.0) -> None:
        """Set the frequencies."""
        super().__init__()
        self.frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines for every position."""
        angles = position_ids[..., None].double() * self.frequencies.to(position_ids.device)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def tiny_bert(num_labels: int = 3, dtype: torch.dtype = torch.float64, **adapter: object) -> peft.PeftModel:
    """BERT, 2 layers of width 16, with LoRA on query and value and a trained head with a bias."""
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.25,
        num_labels=num_labels,
        pad_token_id=PAD,
    )
    return _with_lora(config, dtype, **{"targets": ["query", "value"], **adapter})


def tiny_llama(num_labels: int = 3, dtype: torch.dtype = torch.float64, **adapter: object) -> peft.PeftModel:
    """Llama, 2 layers of width 16 with grouped queries, LoRA on q_proj and v_proj, a trained head without bias."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
        initializer_range=0.25,
        num_labels=num_labels,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=1,
    )
    model = _with_lora(config, dtype, **{"targets": ["q_proj", "v_proj"], **adapter})
    if dtype == torch.float64:
        _compute_in_double(model)
    return model


def tiny_gpt2(num_labels: int = 3, dtype: torch.dtype = torch.float64, **adapter: object) -> peft.PeftModel:
    """GPT-2, 2 layers of width 16 with absolute positions, LoRA on the fused c_attn (a transposed Conv1D)."""
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.25,
        num_labels=num_labels,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=1,
    )
    return _with_lora(config, dtype, **{"targets": ["c_attn"], "fan_in_fan_out": True, **adapter})


def _with_lora(
    config: PretrainedConfig,
    dtype: torch.dtype,
    targets: list[str] | str,
    r: int = 3,
    lora_alpha: int = 5,
    seed: int = 0,
    **options: object,
) -> peft.PeftModel:
    """Build the model, wrap it, and move lora_B and the head away from where PEFT starts them.

    The adapter keeps its dropout of 0.1, so that only evaluation mode is deterministic.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").to(dtype)
        model = peft.get_peft_model(
            base,
            peft.LoraConfig(
                task_type="SEQ_CLS", target_modules=targets, r=r, lora_alpha=lora_alpha, lora_dropout=0.1, **options
            ),
        )
        generator = torch.Generator().manual_seed(seed + 1)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or (".modules_to_save." in name and name.endswith(".bias")):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data.copy_(0.3 * noise)
    return model.eval()


def _compute_in_double(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                setattr(parent, name, DoubleRMSNorm(child.weight, child.variance_epsilon))
            elif type(child).__name__ == "LlamaRotaryEmbedding":
                setattr(parent, name, DoubleRotary(2 * child.inv_freq.numel()))


MODELS = {"bert": tiny_bert, "llama": tiny_llama, "gpt2": tiny_gpt2}


def random_examples(n: int, num_labels: int = 3, seed: int = 0, shortest: int = 2, longest: int = 9) -> list[Example]:
    """Draw examples of ragged lengths: ``input_ids`` (T,) without padding tokens, ``labels`` ()."""
    generator = torch.Generator().manual_seed(1_000 + seed)

    def below(high: int, low: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    lengths = [int(below(longest + 1, shortest)) for _ in range(n)]
    return [{"input_ids": below(VOCAB, 2, length), "labels": below(num_labels, 0)} for length in lengths]


def collate(examples: Sequence[Example], side: str = "right") -> Batch:
    """Pad examples on one side, as a tokenizer would; labels are kept where every example has one."""
    longest = max(len(example["input_ids"]) for example in examples)
    ids = torch.full((len(examples), longest), PAD)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        tokens = example["input_ids"]
        where = slice(0, len(tokens)) if side == "right" else slice(longest - len(tokens), longest)
        ids[row, where], mask[row, where] = tokens, 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if all("labels" in example for example in examples):
        batch["labels"] = torch.stack([example["labels"] for example in examples])
    return batch


def batches(examples: Sequence[Example], size: int, side: str = "right") -> list[Batch]:
    """Collate consecutive groups of ``size`` examples; the last may be smaller."""
    return [collate(examples[start : start + size], side) for start in range(0, len(examples), size)]


def once(items: Sequence[Batch]) -> Iterator[Batch]:
    """Return a generator: it can be read exactly once."""
    yield from items
