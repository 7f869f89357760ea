"""Tiny quantised models with adapters, and their twins on the dequantised weights."""

import copy
import dataclasses
import functools
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from laplace_lora import AnswerTokens, LaplaceConfig, LaplaceLoRA
from laplace_lora.adapters import adapter_state_dict
from laplace_lora.adapters.quantised import quantization_config
from laplace_lora.readouts import Readout
from tiny_models import PAD, VOCAB, Batch, batches, collate, random_examples

WIDTH, CLASSES = 64, 3
ANSWERS = (7, 3, 11)
LLAMA, BERT = ["q_proj", "v_proj"], ["query", "value"]


@functools.cache
def bases() -> tempfile.TemporaryDirectory[str]:
    """Save a tiny causal Llama and a tiny BERT; gone when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="laplace-lora-tests-")
    shared: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 32,
        "initializer_range": 0.15,
        "pad_token_id": PAD,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        llama = LlamaConfig(**shared, num_key_value_heads=1, bos_token_id=1, eos_token_id=1, tie_word_embeddings=False)
        LlamaForCausalLM(llama).save_pretrained(f"{folder.name}/llama")
        BertForSequenceClassification(BertConfig(**shared, num_labels=CLASSES)).save_pretrained(f"{folder.name}/bert")
    return folder


def base_folder(kind: str) -> Path:
    """Return the folder of a base: ``llama`` for both of its kinds, or ``bert``."""
    return Path(bases().name) / ("bert" if kind == "bert" else "llama")


def load_base(kind: str, quantization: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a base: ``causal``, ``llama`` (a classifier) or ``bert``.

    Args:
        kind: Which.
        quantization: A name, or a configuration of transformers.
        dtype: Of what is not quantised.
    """
    keep = ["classifier"] if kind == "bert" else []
    config = quantization_config(quantization, dtype, keep=keep) if isinstance(quantization, str) else quantization
    options: dict[str, Any] = {"dtype": dtype, "quantization_config": config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # the Llama's classification head is new
        if kind == "causal":
            return AutoModelForCausalLM.from_pretrained(base_folder(kind), **options)
        return AutoModelForSequenceClassification.from_pretrained(base_folder(kind), num_labels=CLASSES, **options)


def adapted(kind: str, quantization: Any, dtype: torch.dtype = torch.float32, **options: Any) -> peft.PeftModel:
    """Put a LoRA adapter on a quantised base, as for QLoRA, with lora_B away from zero. In eval mode."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(2)
        base = peft.prepare_model_for_kbit_training(load_base(kind, quantization, dtype), False)
        model = peft.get_peft_model(base, lora_config(kind, **options))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.data.normal_(std=0.3)
    return model.eval()


def lora_config(kind: str, **options: Any) -> peft.LoraConfig:
    """Return an adapter's settings; the causal model's adapter is on the output embeddings too."""
    targets = {"causal": [*LLAMA, "lm_head"], "llama": LLAMA, "bert": BERT}[kind]
    task = "CAUSAL_LM" if kind == "causal" else "SEQ_CLS"
    settings = {"task_type": task, "target_modules": targets, "r": 3, "lora_alpha": 5, "lora_dropout": 0.1, **options}
    return peft.LoraConfig(**settings)


def is_quantised_linear(module: nn.Module) -> bool:
    """Say whether a module is one of the quantisers' linear layers."""
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) and type(weight).__module__.startswith(("bitsandbytes.", "torchao."))


def dequantised(model: peft.PeftModel) -> peft.PeftModel:
    """Return a copy of a model whose quantised layers are replaced by plain ones with the dequantised weights."""
    twin = copy.deepcopy(model)
    found = [(name, module) for name, module in twin.named_modules() if is_quantised_linear(module)]
    assert found
    for name, module in found:
        weight = dequantize_module_weight(module).detach()
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None, dtype=weight.dtype)
        plain.weight.data.copy_(weight)
        if module.bias is not None:
            plain.bias.data.copy_(module.bias)
        twin.set_submodule(name, plain.requires_grad_(False))
    assert not any(map(is_quantised_linear, twin.modules()))
    return twin.eval()


def readout_of(kind: str) -> Readout | None:
    """Return how a kind of model is read; None for what is inferred."""
    return AnswerTokens(ANSWERS) if kind == "causal" else None


def training_batches(count: int = 6) -> list[Batch]:
    """Return labelled batches of ragged examples."""
    return batches(random_examples(count, CLASSES), 3)


def fitted(model: peft.PeftModel, kind: str, loader: list[Batch] | None = None, **settings: Any) -> LaplaceLoRA:
    """Fit a posterior without a progress bar."""
    la = LaplaceLoRA(model, LaplaceConfig(progress=False, **settings), readout_of(kind))
    return la.fit(training_batches() if loader is None else loader)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one posterior says of four test examples, before and after its prior was tuned.

    Attributes:
        mean: Logits.
        covariance: Their covariance.
        evidence: Log evidence, in nats.
        log_precision: Logarithm of the tuned prior precision.
        sample: What one sampled adapter adds to the trained one.
        tuned_covariance: Covariance under the tuned prior.
    """

    mean: Tensor
    covariance: Tensor
    evidence: float
    log_precision: float
    sample: Tensor
    tuned_covariance: Tensor


def figures(model: peft.PeftModel, kind: str, **settings: Any) -> Figures:
    """Fit a posterior, and say what it says."""
    test = collate(random_examples(4, CLASSES, seed=9))
    la = fitted(model, kind, **settings)
    p, evidence = la.predict(test), la.log_marginal_likelihood()
    la.tune_prior("evidence")
    (sample,) = la.sample(1, seed=3)
    trained = adapter_state_dict(model, "default")
    moved = torch.cat([(sample[key] - trained[key]).flatten() for key in sorted(sample)])
    return Figures(p.mean, p.covariance, evidence, math.log(la.prior_precision), moved, la.predict(test).covariance)


def assert_equal(here: Figures, twin: Figures, mean: float, rest: float) -> None:
    """Assert that two posteriors agree.

    Args:
        here: One.
        twin: The other.
        mean: Largest error allowed of logits, relative to the largest.
        rest: Largest relative error allowed of everything else.
    """
    found = {
        "mean": (error(here.mean, twin.mean), mean),
        "covariance": (error(here.covariance, twin.covariance), rest),
        "evidence": (abs(here.evidence / twin.evidence - 1), rest),
        "prior precision": (abs(here.log_precision - twin.log_precision), rest),
        "sample": (error(here.sample, twin.sample), rest),
        "covariance when tuned": (error(here.tuned_covariance, twin.tuned_covariance), rest),
    }
    assert {name: value for name, value in found.items() if not value[0] <= value[1]} == {}


def error(left: Tensor, right: Tensor) -> float:
    """Return the largest difference over the largest expected entry."""
    return float((left.double() - right.double()).abs().max() / right.double().abs().max())
