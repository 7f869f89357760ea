"""A quantised model is left as it was found, and known again when a posterior is loaded onto it."""

import copy
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

from laplace_lora import LaplaceLoRA
from laplace_lora.adapters import fingerprint
from laplace_lora.adapters.packed import differentiable, is_quantised, stored_values
from laplace_lora.errors import PosteriorFileError, UnsupportedInputError
from quantised.needed import require
from quantised.support import CLASSES, adapted, dequantised, error, fitted, load_base
from tiny_models import collate, random_examples

ALL = ["nf4", "nf4-double", "int8", "torchao-int8"]


def _everything(model: nn.Module) -> dict[str, Tensor]:
    """Copy every tensor that makes up a model."""
    found = {}
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        found.update({f"{name}{part}": value.clone() for part, value in stored_values(owner, parameter)})
    return found | {name: value.clone() for name, value in model.named_buffers()}


def _test_batch() -> dict[str, Tensor]:
    return collate(random_examples(4, CLASSES, seed=9))


def _logits(model: nn.Module) -> Tensor:
    batch = _test_batch()
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("quantization", ALL)
def test_untouched(quantization: str) -> None:
    require(quantization)
    model = adapted("llama", quantization).train()
    parameters = {name: (id(p), type(p), p.requires_grad, p.dtype) for name, p in model.named_parameters()}
    before, modes = _everything(model), {name: m.training for name, m in model.named_modules()}
    la = fitted(model, "llama").tune_prior("evidence")
    la.predict(_test_batch())
    la.sample(1)
    after = _everything(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name: (id(p), type(p), p.requires_grad, p.dtype) for name, p in model.named_parameters()} == parameters
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("quantization", ALL)
def test_prediction_is_of_the_model_itself(quantization: str) -> None:
    require(quantization)
    model = adapted("llama", quantization)
    p = fitted(model, "llama").predict(_test_batch())
    # On CPUs with bfloat16 instructions, bitsandbytes' inference in eval mode is a product of its own, in bfloat16.
    with differentiable(model):
        expected = _logits(model)
    assert error(p.mean, expected) < 1e-6


@pytest.mark.parametrize("quantization", ALL)
def test_saved_and_loaded_onto_a_frozen_model(quantization: str, tmp_path: Path) -> None:
    """The adapter is saved and put on a base that was quantised anew, as when it is served."""
    require(quantization)
    model = adapted("llama", quantization)
    la = fitted(model, "llama").tune_prior("evidence")
    model.save_pretrained(tmp_path)
    la.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(load_base("llama", quantization), str(tmp_path)).eval()
    assert not any(p.requires_grad for p in again.parameters())
    loaded = LaplaceLoRA.from_pretrained(again, tmp_path)
    here, there = la.predict(_test_batch()), loaded.predict(_test_batch())
    assert torch.equal(here.mean, there.mean)
    assert torch.equal(here.covariance, there.covariance)
    # Fitting a frozen model finds the same posterior.
    anew = fitted(again, "llama").tune_prior("evidence")
    assert torch.equal(anew.predict(_test_batch()).covariance, here.covariance)
    assert anew.log_marginal_likelihood() == la.log_marginal_likelihood()


@pytest.mark.parametrize("quantization", ["nf4", "nf4-double", "int8"])
def test_base_saved_in_its_quantised_form(quantization: str, tmp_path: Path) -> None:
    require(quantization)
    from transformers import AutoModelForSequenceClassification

    model = adapted("llama", quantization)
    la = fitted(model, "llama")
    model.save_pretrained(tmp_path / "adapter")
    la.save_pretrained(tmp_path / "adapter")
    load_base("llama", quantization).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    assert is_quantised(base)
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    loaded = LaplaceLoRA.from_pretrained(again, tmp_path / "adapter")
    assert error(loaded.predict(_test_batch()).covariance, la.predict(_test_batch()).covariance) < 2e-5


@pytest.mark.parametrize("quantization", ALL)
def test_fingerprint(quantization: str) -> None:
    require(quantization)
    model = adapted("llama", quantization)
    first = fingerprint(model, "default")
    _logits(model)  # bitsandbytes moves the scales in the first pass
    assert fingerprint(model, "default") == first
    assert fingerprint(copy.deepcopy(model), "default") == first
    assert fingerprint(adapted("llama", quantization), "default") == first
    other = fingerprint(dequantised(model), "default")
    assert other.base_sha256 != first.base_sha256
    assert other.adapter_sha256 == first.adapter_sha256


@pytest.mark.parametrize("quantization", ["nf4", "int8", "torchao-int8"])
@pytest.mark.parametrize("part", ["codes", "scales"])
def test_fingerprint_notices_another_base(quantization: str, part: str) -> None:
    require(quantization)
    model = adapted("llama", quantization)
    first = fingerprint(model, "default").base_sha256
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
    values = stored_values(layer, layer.weight)
    if part == "codes":
        values[0][1].view(-1)[0] += 1
    elif quantization == "nf4":
        layer.weight.quant_state.absmax.mul_(1.5)
    else:
        values[1][1].mul_(1.5)
    assert fingerprint(model, "default").base_sha256 != first


def test_posterior_of_another_quantisation_is_refused(tmp_path: Path) -> None:
    require("nf4")
    fitted(adapted("llama", "nf4"), "llama").save_pretrained(tmp_path)
    for other in (adapted("llama", "int8"), adapted("llama", "nf4-double"), dequantised(adapted("llama", "nf4"))):
        with pytest.raises(PosteriorFileError, match="base model weights"):
            LaplaceLoRA.from_pretrained(other, tmp_path)


@pytest.mark.parametrize("quantization", ALL)
def test_not_finite(quantization: str) -> None:
    """Weights that turned to NaN are named, also where they are quantised."""
    require(quantization)
    model = adapted("llama", quantization)
    layer = model.get_submodule("base_model.model.model.layers.1.mlp.up_proj")
    if quantization == "nf4":
        layer.weight.quant_state.absmax.fill_(float("nan"))
    elif quantization == "nf4-double":
        layer.weight.quant_state.offset.fill_(float("nan"))
    else:
        stored_values(layer, layer.weight)[1][1].fill_(float("nan"))
    with pytest.raises(UnsupportedInputError, match=r"weight \S*layers\.1\.mlp\.up_proj\.weight holds NaN"):
        fitted(model, "llama")
