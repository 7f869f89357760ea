"""On CPUs with bfloat16 instructions bitsandbytes rearranges 4-bit weights in eval mode, for good.

The product with them has no gradient: without care, Jacobians would lack all paths through these layers, silently. The
rearrangement is plain torch and happens here on any CPU; the product itself, where it is missing, is never called.
"""

import copy

import pytest
import torch
from torch import nn

from laplace_lora import LaplaceLoRA
from laplace_lora.adapters import fingerprint
from laplace_lora.adapters.packed import differentiable
from laplace_lora.errors import UnsupportedAdapterError
from quantised.needed import require
from quantised.support import adapted, assert_equal, figures, fitted

require("nf4")

functional = pytest.importorskip("bitsandbytes.functional")
if not hasattr(functional, "_convert_weight_packed_for_cpu"):
    pytest.skip("this bitsandbytes does not rearrange weights for CPUs", allow_module_level=True)


def _layers(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m._parameters.get("weight")).__name__ == "Params4bit"]


def _rounded(model: nn.Module) -> nn.Module:
    """Return a copy whose scales are rounded as the rearrangement rounds them: to bfloat16, and no more quantised."""
    copied = copy.deepcopy(model)
    for layer in _layers(copied):
        state = layer.weight.quant_state
        scales = state.absmax
        if state.nested:
            scales = functional.dequantize_blockwise(scales, state.state2) + state.offset
            state.nested, state.state2, state.offset = False, None, None
        state.absmax = scales.bfloat16().float()
    return copied


def _rearrange(model: nn.Module) -> nn.Module:
    """Do what bitsandbytes' forward pass does on such CPUs."""
    for layer in _layers(model):
        state = layer.weight.quant_state
        layer.weight.data, layer.weight.quant_state = functional._convert_weight_packed_for_cpu(
            layer.weight.data, state
        )
    return model


@pytest.mark.parametrize("quantization", ["nf4", "nf4-double"])
def test_rearranged_before(quantization: str) -> None:
    """As after any prediction in eval mode."""
    model = adapted("causal", quantization)
    expected = figures(_rounded(model), "causal")
    _rearrange(model)
    before = [(layer.weight.data.clone(), layer.weight.quant_state) for layer in _layers(model)]
    assert_equal(figures(model, "causal"), expected, 2e-5, 2e-5)
    for layer, (data, state) in zip(_layers(model), before, strict=True):
        assert torch.equal(layer.weight.data, data)
        assert layer.weight.quant_state is state
        assert state.packing_format_for_cpu
        assert state.absmax.dtype == torch.bfloat16


def test_never_rearranged_on_the_way() -> None:
    """The model says that it would; a pass must not let it."""
    model = adapted("causal", "nf4")
    expected = figures(model, "causal")
    for layer in _layers(model):
        layer.support_avx512bf16_for_cpu = True
    assert_equal(figures(model, "causal"), expected, 0.0, 0.0)
    for layer in _layers(model):
        assert layer.support_avx512bf16_for_cpu
        assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


def test_put_back_after_an_error() -> None:
    model = _rearrange(adapted("llama", "nf4"))
    state = _layers(model)[0].weight.quant_state

    def fail() -> None:
        with differentiable(model):
            assert _layers(model)[0].weight.quant_state is not state
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert _layers(model)[0].weight.quant_state is state


def test_spoilt_by_saving() -> None:
    """bitsandbytes puts the weights in order for its state dict, and forgets their scales (0.50)."""
    model = _rearrange(adapted("llama", "nf4"))
    LaplaceLoRA(model)  # looks up the adapter's weights without that
    assert _layers(model)[0].weight.quant_state.packing_format_for_cpu
    model.state_dict()
    if _layers(model)[0].weight.quant_state.absmax.dim() == 1:
        pytest.skip("this bitsandbytes does not spoil them")
    with pytest.raises(UnsupportedAdapterError, match=r"load the model anew\.$"):
        fitted(model, "llama")


@pytest.mark.parametrize("quantization", ["nf4", "nf4-double"])
def test_fingerprint_stays(quantization: str) -> None:
    model = adapted("llama", quantization)
    before = fingerprint(model, "default")
    assert fingerprint(_rearrange(model), "default") == before
