"""Kinds of LoRA that are refused, by name and with what to do about it."""

import functools
from collections.abc import Callable, Iterator

import peft
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from adapters.double import double_softmax
from adapters.variants import ANSWERS, ARCHITECTURES, answerer, base_model, classifier
from laplace_lora import AnswerTokens, LaplaceLoRA
from laplace_lora.errors import UnsupportedAdapterError

# PEFT's and transformers' own; and that rows go one by one, of which test_mixing_layers.py has a test.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    with double_softmax():
        yield


class _Small(nn.Module):
    """A classifier with a convolution and PyTorch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
        hidden = self.conv(self.embed(input_ids)[:, None])[:, 0]
        hidden = self.attention(hidden, hidden, hidden)[0]
        output = type("Output", (), {})()
        output.logits = self.head(hidden.mean(1))
        return output


def _small(**options: object) -> peft.PeftModel:
    return peft.get_peft_model(_Small(), peft.LoraConfig(r=2, **options)).eval()


def _experts(target: str, **options: object) -> peft.PeftModel:
    _, settings = ARCHITECTURES["llama"]
    config = hf.MixtralConfig(**settings, num_local_experts=2, num_experts_per_tok=1)
    base = AutoModelForCausalLM.from_config(config)
    settings = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "target_parameters": [target], "r": 2}
    return peft.get_peft_model(base, peft.LoraConfig(**{**settings, **options})).eval()


def _merged() -> peft.PeftModel:
    model = answerer("llama")
    model.merge_adapter()
    return model


def _llama(**options: object) -> peft.PeftModel:
    base = base_model("llama", True, dtype=torch.float32)
    settings = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 2, **options}
    return peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()


PLAIN = "retrain with plain LoRA or, on linear layers, DoRA."
# How it is made, what the message names, how it ends.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "merged": (_merged, r"layers\.0\.self_attn\.q_proj", r"call model.unmerge_adapter\(\) first."),
    "experts": (
        functools.partial(_experts, "experts.gate_up_proj"),
        r"layers\.0\.mlp\.experts.*gate_up_proj",
        "retrain with target_modules.",
    ),
    "DoRA on an embedding": (
        lambda: classifier("bert", target_modules=["word_embeddings"], use_dora=True),
        r"word_embeddings.*DoraEmbeddingVariant",
        PLAIN,
    ),
    "Conv2d": (lambda: _small(target_modules=["conv"]), r"conv.*Conv2d", "retrain with LoRA on linear layers only."),
    "DoRA on Conv2d": (lambda: _small(target_modules=["conv"], use_dora=True), r"conv.*DoraConv2dVariant", PLAIN),
    "MultiheadAttention": (
        lambda: _small(target_modules=["attention"]),
        r"attention.*MultiheadAttention",
        "retrain without this module.",
    ),
    "aLoRA": (lambda: _llama(alora_invocation_tokens=[5]), r"q_proj.*ALora", PLAIN),
    "MiCA": (lambda: _llama(init_lora_weights="mica"), r"q_proj.*MiCA", PLAIN),
    "KaSA": (lambda: _llama(kasa_config=peft.tuners.lora.config.KasaConfig()), r"q_proj.*Kasa", PLAIN),
    "tokens trained in full": (
        lambda: _llama(trainable_token_indices=[5, 6]),
        r"embed_tokens.*TrainableTokens",
        "retrain without it.",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name_with_a_remedy(kind: str) -> None:
    make, name, remedy = REFUSED[kind]
    with pytest.raises(UnsupportedAdapterError, match=rf"(?s){name}.*{remedy}$"):
        LaplaceLoRA(make(), readout=AnswerTokens(ANSWERS) if kind in ("merged", "aLoRA") else None)
