"""On a quantised base, everything equals what it is on the dequantised weights, to the quantiser's arithmetic.

NF4 (its scales quantised or not) and torchao's int8 are formats of weights: products are taken in the dtype of the
activations, with the dequantised weights, so that all that may differ is the order of float32 sums. Measured here: NF4
0 (bitsandbytes dequantises and calls the same product), torchao 2e-6 of logits and covariances (it multiplies by the
scales after the product). The bounds allow ten times that.

LLM.int8 rounds the activations too; see test_int8_activations.py.
"""

from typing import Any

import pytest
import torch

from quantised.needed import require
from quantised.support import adapted, assert_equal, dequantised, figures

# (mean, rest): relative errors, float32's 6e-8 times what some hundred roundings add up to.
ROUNDING = (2e-5, 2e-5)
WEIGHT_ONLY = ["nf4", "nf4-double", "torchao-int8"]


def _check(kind: str, quantization: str, structure: str = "kron", **options: Any) -> None:
    require(quantization)
    model = adapted(kind, quantization, **options)
    here, twin = (figures(m, kind, structure=structure) for m in (model, dequantised(model)))
    assert_equal(here, twin, *ROUNDING)


@pytest.mark.parametrize(
    ("kind", "structure"),
    [("causal", "kron"), ("causal", "exact"), ("causal", "diag"), ("llama", "kron"), ("bert", "kron")],
)
@pytest.mark.parametrize("quantization", WEIGHT_ONLY)
def test_weight_only(kind: str, quantization: str, structure: str) -> None:
    _check(kind, quantization, structure)


@pytest.mark.parametrize("quantization", ["nf4", "torchao-int8"])
def test_last_layer(quantization: str) -> None:
    _check("llama", quantization, "last_layer")


@pytest.mark.parametrize(
    ("quantization", "kind"), [("nf4", "causal"), ("nf4", "bert"), ("nf4-double", "causal"), ("torchao-int8", "causal")]
)
def test_dora(quantization: str, kind: str) -> None:
    """The magnitudes' norms are those of the dequantised weights."""
    _check(kind, quantization, use_dora=True)


@pytest.mark.parametrize("quantization", ["nf4", "torchao-int8"])
def test_all_linear_layers(quantization: str) -> None:
    _check("llama", quantization, target_modules="all-linear")


def test_gradient_checkpointing() -> None:
    """As peft.prepare_model_for_kbit_training leaves it unless told otherwise."""
    require("nf4")
    model = adapted("causal", "nf4")
    twin = figures(dequantised(model), "causal")
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    assert_equal(figures(model, "causal"), twin, *ROUNDING)


@pytest.mark.parametrize("quantization", ["nf4", "torchao-int8"])
def test_quantised_output_embeddings_under_lora(quantization: str) -> None:
    """Quantisers leave lm_head alone unless told otherwise; here they are told."""
    require(quantization)
    from quantised.everything import everything

    model = adapted("causal", everything(quantization))
    here, twin = (figures(m, "causal", structure="exact") for m in (model, dequantised(model)))
    assert_equal(here, twin, *ROUNDING)


@pytest.mark.parametrize("quantization", ["nf4", "torchao-int8"])
def test_bfloat16(quantization: str) -> None:
    """Products in bfloat16, with 8 bits: as far from float32 as an unquantised bf16 base is (engine/test_bf16.py)."""
    require(quantization)
    model = adapted("causal", quantization, torch.bfloat16)
    twin = dequantised(model).float()
    assert_equal(figures(model, "causal"), figures(twin, "causal"), 0.05, 0.15)
