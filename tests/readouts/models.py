"""Tiny models with LoRA for every readout, in float64, and the batches that they are called with."""

import functools
from collections.abc import Mapping, Sequence

import peft
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
)

from tiny_models import PAD, VOCAB, Batch, Example, _compute_in_double, collate, tiny_bert, tiny_llama

#: Changes to a tiny causal language model: where LoRA is, and what is shared or trained in full.
LANGUAGE_MODELS: dict[str, dict[str, object]] = {
    "llama": {},
    "gpt2": {"kind": "gpt2"},
    "llama-head": {"targets": ["q_proj", "v_proj", "lm_head"]},
    "llama-head-alone": {"targets": ["lm_head"]},
    "llama-saved-head": {"modules_to_save": ["lm_head"]},
    "llama-tied": {"tied": True},
    "llama-tied-head": {"tied": True, "targets": ["q_proj", "v_proj", "lm_head"]},
    "gpt2-tied": {"kind": "gpt2", "tied": True},
}


def _configuration(kind: str, vocab: int, width: int, layers: int, tied: bool) -> PretrainedConfig:
    special = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.25}
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=vocab,
            n_embd=width,
            n_layer=layers,
            n_head=2,
            n_positions=64,
            tie_word_embeddings=tied,
            **special,
        )
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        **special,
    )


def tiny_lm(
    kind: str = "llama",
    vocab: int = VOCAB,
    width: int = 16,
    layers: int = 2,
    tied: bool = False,
    targets: Sequence[str] | None = None,
    r: int = 3,
    seed: int = 0,
    **options: object,
) -> peft.PeftModel:
    """Causal language model with LoRA; lora_B moved away from where PEFT starts it."""
    targets = targets or {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = _configuration(kind, vocab, width, layers, tied)
        base = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").to(torch.float64)
        settings = peft.LoraConfig(
            task_type="CAUSAL_LM",
            target_modules=list(targets),
            r=r,
            lora_alpha=5,
            lora_dropout=0.1,
            fan_in_fan_out=kind == "gpt2",
            **options,
        )
        model = peft.get_peft_model(base, settings)
    _move(model, seed)
    if kind == "llama":
        _compute_in_double(model)
    return model.eval()


def tiny_multiple_choice(seed: int = 0, **options: object) -> peft.PeftModel:
    """BERT with one logit per option, LoRA on query, value and the pooler, and a trained head with a bias."""
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.25,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = AutoModelForMultipleChoice.from_config(config, attn_implementation="sdpa").to(torch.float64)
        settings = peft.LoraConfig(
            target_modules=["query", "value", "pooler.dense"],
            modules_to_save=["classifier"],
            r=3,
            lora_alpha=5,
            lora_dropout=0.1,
            **options,
        )
        model = peft.get_peft_model(base, settings)
    _move(model, seed)
    return model.eval()


def tiny_regression(kind: str = "bert", **options: object) -> peft.PeftModel:
    """Sequence classifier with one output: regression, or a reward model."""
    return {"bert": tiny_bert, "llama": tiny_llama}[kind](1, **options)


def _move(model: peft.PeftModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name or (".modules_to_save." in name and name.endswith(".bias")):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(0.3 * noise)


@functools.cache
def language_model(name: str) -> peft.PeftModel:
    """Return a tiny language model of the table. Shared: never change it."""
    return tiny_lm(**LANGUAGE_MODELS[name])


@functools.cache
def multiple_choice() -> peft.PeftModel:
    """Return the multiple-choice encoder. Shared: never change it."""
    return tiny_multiple_choice()


@functools.cache
def regression(kind: str = "bert") -> peft.PeftModel:
    """Return a model with one output. Shared: never change it."""
    return tiny_regression(kind)


# --- batches -----------------------------------------------------------------------------------------------------


def pad(rows: Sequence[Tensor], side: str = "right", fill: int = PAD, length: int | None = None) -> Tensor:
    """Pad rows to one length. ``side`` may be ``mixed``: left and right in turn."""
    length = length or max(len(row) for row in rows)
    padded = torch.full((len(rows), length), fill)
    for index, row in enumerate(rows):
        left = side == "left" or (side == "mixed" and index % 2 == 0)
        where = slice(length - len(row), length) if left else slice(0, len(row))
        padded[index, where] = row
    return padded


def collate_any(examples: Sequence[Example], side: str = "right") -> Batch:
    """Pad examples, on both sides in turn for ``mixed``."""
    if side != "mixed":
        return collate(examples, side)
    ids = [example["input_ids"] for example in examples]
    mask = pad([torch.ones_like(row) for row in ids], side)
    return {"input_ids": pad(ids, side), "attention_mask": mask, "labels": torch.stack([e["labels"] for e in examples])}


OptionExample = Mapping[str, object]


def option_examples(counts: Sequence[int], seed: int = 0, longest: int = 5) -> list[dict[str, object]]:
    """Draw examples with so many options each: a context, texts after it, their lengths in characters, a label."""
    generator = torch.Generator().manual_seed(2_000 + seed)

    def below(high: int, low: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    examples = []
    for count in counts:
        context = below(VOCAB, 2, int(below(5, 1)))
        texts = [below(VOCAB, 2, int(below(longest, 1))) for _ in range(count)]
        lengths = [int(below(12, 3)) for _ in range(count)]
        examples.append({"context": context, "texts": texts, "lengths": lengths, "label": int(below(count, 0))})
    return examples


def collate_options(
    examples: Sequence[OptionExample], side: str = "right", completion: bool = True, width: int | None = None
) -> Batch:
    """Pad options to one length and examples to one number of options; absent ones have masks of 0."""
    width = width or max(len(example["texts"]) for example in examples)
    ids, masks, chosen, lengths = [], [], [], []
    for example in examples:
        context = example["context"]
        for option in range(width):
            present = option < len(example["texts"])
            text = example["texts"][option] if present else torch.zeros(0, dtype=torch.long)
            row = torch.cat([context, text]) if present else text
            ids.append(row)
            masks.append(torch.ones_like(row))
            chosen.append(torch.cat([torch.zeros_like(context), torch.ones_like(text)]) if present else text)
            lengths.append(example["lengths"][option] if present else 0)
    shape = (len(examples), width, -1)
    batch = {"input_ids": pad(ids, side).view(shape), "attention_mask": pad(masks, side, 0).view(shape)}
    if completion:
        batch["completion_mask"] = pad(chosen, side, 0).view(shape)
        batch["option_lengths"] = torch.tensor(lengths).view(len(examples), width)
    batch["labels"] = torch.tensor([example["label"] for example in examples])
    return batch


def option_batches(examples: Sequence[OptionExample], size: int, **options: object) -> list[Batch]:
    """Collate consecutive groups: every batch is as wide as its own widest example."""
    return [collate_options(examples[start : start + size], **options) for start in range(0, len(examples), size)]
