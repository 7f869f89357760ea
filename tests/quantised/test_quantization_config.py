"""Loading a base in fewer bits by name, and what is refused by name."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from laplace_lora import LaplaceLoRA
from laplace_lora.adapters import quantised
from laplace_lora.adapters.packed import is_quantised
from laplace_lora.adapters.quantised import QUANTIZATIONS, kept_modules, quantization_config, to_device
from laplace_lora.errors import AdapterFileError, LaplaceLoRAError, MissingExtraError, UnsupportedAdapterError
from quantised.everything import everything
from quantised.needed import require
from quantised.support import BERT, CLASSES, adapted, base_folder, fitted, is_quantised_linear, lora_config

LAYERS = {"nf4": "Linear4bit", "nf4-double": "Linear4bit", "int8": "Linear8bitLt", "torchao-int8": "Linear"}


def _empty(kind: str) -> nn.Module:
    """Return a model without memory, as loading makes one to learn its shapes."""
    config = AutoConfig.from_pretrained(base_folder(kind))
    with torch.device("meta"):
        auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
        return auto.from_config(config)


@pytest.mark.parametrize("dtype", [torch.float32, "bfloat16", "auto"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_from_pretrained(quantization: str, dtype: Any) -> None:
    require(quantization)
    config = quantization_config(quantization, dtype, AutoConfig.from_pretrained(base_folder("causal")))
    base = AutoModelForCausalLM.from_pretrained(base_folder("causal"), dtype=dtype, quantization_config=config)
    assert is_quantised(base)
    layer = base.model.layers[0].mlp.up_proj
    assert is_quantised_linear(layer)
    assert type(layer).__name__ == LAYERS[quantization]
    expected = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    assert base.lm_head.weight.dtype == expected
    assert not is_quantised_linear(base.lm_head)
    if quantization.startswith("nf4"):
        assert layer.compute_dtype == expected
        assert layer.weight.quant_state.nested == (quantization == "nf4-double")
        assert layer.weight.quant_state.quant_type == "nf4"


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_adapter_with_its_head(quantization: str, tmp_path: Path) -> None:
    """A trained head stays as it is, also where the quantiser would take it: BERT's is not the output embeddings."""
    require(quantization)
    model = adapted("bert", quantization)
    model.save_pretrained(tmp_path)
    kept = kept_modules(_empty("bert"), [f"base_model.model.{key}" for key in ("classifier.weight", "classifier.bias")])
    assert kept == ["classifier"]
    config = quantization_config(quantization, torch.float32, keep=kept)
    base = AutoModelForSequenceClassification.from_pretrained(
        base_folder("bert"), dtype=torch.float32, quantization_config=config
    )
    assert not is_quantised_linear(base.classifier)
    assert is_quantised_linear(base.bert.pooler.dense)
    again = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
    fitted(again, "bert")


@pytest.mark.parametrize(
    ("kind", "saved", "expected"),
    [
        ("causal", ["model.layers.0.self_attn.q_proj.lora_A.weight"], ["lm_head"]),
        ("causal", ["model.embed_tokens.weight"], ["lm_head", "model.embed_tokens"]),
        ("causal", ["model.layers.0.self_attn.q_proj.bias"], ["lm_head"]),
        ("llama", ["score.weight"], ["score"]),
        ("bert", [], ["classifier"]),
    ],
)
def test_kept_modules(kind: str, saved: list[str], expected: list[str]) -> None:
    assert kept_modules(_empty(kind), [f"base_model.model.{key}" for key in saved]) == expected


def test_none_is_none() -> None:
    assert quantization_config(None, "auto") is None


@pytest.mark.parametrize("name", ["int4", "NF4", "", "fp4"])
def test_unknown(name: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=r"choose one of nf4, nf4-double, int8, torchao-int8\.$"):
        quantization_config(name, torch.float32)


@pytest.mark.parametrize(
    ("quantization", "package"),
    [("nf4", "bitsandbytes"), ("int8", "bitsandbytes"), ("torchao-int8", "torchao"), ("nf4", "accelerate")],
)
def test_missing_package(quantization: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "torchao", "accelerate"):
        monkeypatch.setattr(quantised, f"is_{name}_available", lambda name=name: name != package)
    with pytest.raises(MissingExtraError, match=rf"{package} .*pip install 'laplace-lora\[quantized\]'\.$"):
        quantization_config(quantization, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, "float64", torch.int8, "no-such"])
def test_dtype_that_no_quantiser_knows(dtype: Any) -> None:
    require("nf4")
    with pytest.raises(LaplaceLoRAError, match=r"give dtype float32, bfloat16 or float16\.$"):
        quantization_config("nf4", dtype)


def test_checkpoint_that_is_quantised_already() -> None:
    config = AutoConfig.from_pretrained(base_folder("causal"))
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(AdapterFileError, match=r"leave quantization out\.$"):
        quantization_config("nf4", torch.float32, config)


def test_to_device() -> None:
    require("nf4")
    model = adapted("llama", "nf4")
    assert to_device(model, torch.device("cpu")) is model
    with pytest.raises(LaplaceLoRAError, match=r"load it there with device_map=\{'': 'cuda:0'\}\.$"):
        to_device(model, torch.device("cuda:0"))
    plain = nn.Linear(2, 2)
    assert to_device(plain, torch.device("cpu")) is plain


def test_dora_on_int8_on_a_cpu() -> None:
    """PEFT's own forward pass fails from the second on."""
    require("int8")
    with pytest.raises(UnsupportedAdapterError, match=r"q_proj: PEFT loses the scales .* or run on a GPU\.$"):
        LaplaceLoRA(adapted("llama", "int8", use_dora=True))


def test_head_that_was_quantised_and_trained() -> None:
    """bitsandbytes' weights cannot be trained, and PEFT says so; torchao's look as if they could."""
    require("torchao-int8")
    base = AutoModelForSequenceClassification.from_pretrained(
        base_folder("bert"), num_labels=CLASSES, quantization_config=everything("torchao-int8")
    )
    model = peft.get_peft_model(base, lora_config("bert", target_modules=BERT))
    with pytest.raises(UnsupportedAdapterError, match=r"classifier is trained in full .* when the base is loaded\.$"):
        LaplaceLoRA(model)
