"""bitsandbytes' LLM.int8 rounds activations to 8 bits in the forward pass, and takes gradients as if it did not.

So a posterior on it is that of a model whose layers are rounded, straight through. Three comparisons pin it down:

1. With every column an outlier (threshold 0) nothing is rounded, and it equals the dequantised twin to float32
   rounding: measured 3e-7.
2. A twin that rounds activations by bitsandbytes' own rule, with gradients straight through, is equal to the same.
3. To the dequantised twin the difference is that of the forward passes. Each of the 14 layers errs by 0.5 to 1.6 % (a
   step is 1/127 of a row's largest entry), errors build up, and the logits are off by 2 to 4 % of the largest. First
   order quantities inherit that: covariances, products of two gradients, were off by 1 to 9 %, the evidence by 0.5 %,
   samples and prior precisions by 1 %.

Rounding is also why an example's result depends on the batch: columns in which any row exceeds the threshold (6) are
not rounded, for all rows. Measured: 0.7 to 2 % of the largest logit between one batch and single examples.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from quantised.needed import require
from quantised.support import adapted, assert_equal, dequantised, figures, is_quantised_linear

require("int8")

ROUNDING = (2e-5, 2e-5)
KINDS = ["causal", "llama", "bert"]


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        from bitsandbytes.functional import int8_vectorwise_quant

        ctx.save_for_backward(weight)
        flat = x.reshape(-1, x.shape[-1])
        rounded, largest, outliers = int8_vectorwise_quant(flat.half(), threshold=6.0)
        whole = rounded.float() @ codes.float().T
        # bitsandbytes' constant for 1 / 127^2, which is 2e-5 too large.
        out = whole * (largest[:, None] * scales[None]) * 6.200124e-05
        if bias is not None:
            out = out + bias
        if outliers is not None and len(outliers):
            out = out.addmm(flat[:, outliers], weight[:, outliers].T)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight, None, None, None, None


class _RoundedLinear(nn.Module):
    def __init__(self, plain: nn.Linear, codes: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.plain, self.codes, self.scales = plain, codes, scales

    def forward(self, x: Tensor) -> Tensor:
        return _Rounded.apply(x, self.plain.weight, self.codes, self.scales, self.plain.bias)


def _rounded_twin(model: nn.Module) -> nn.Module:
    twin = dequantised(model)
    for name, module in model.named_modules():
        if is_quantised_linear(module):
            scales = module.state.SCB if module.weight.SCB is None else module.weight.SCB
            twin.set_submodule(name, _RoundedLinear(twin.get_submodule(name), module.weight.data, scales))
    return twin


@pytest.mark.parametrize("kind", KINDS)
def test_without_rounding(kind: str) -> None:
    config = BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_threshold=1e-30, llm_int8_skip_modules=["lm_head", "score", "classifier"]
    )
    model = adapted(kind, config)
    assert_equal(figures(model, kind), figures(dequantised(model), kind), *ROUNDING)


@pytest.mark.parametrize(("kind", "structure"), [("causal", "kron"), ("llama", "exact"), ("bert", "kron")])
def test_twin_that_rounds_alike(kind: str, structure: str) -> None:
    model = adapted(kind, "int8")
    twin = _rounded_twin(model)
    assert_equal(figures(model, kind, structure=structure), figures(twin, kind, structure=structure), *ROUNDING)


@pytest.mark.parametrize(
    ("kind", "structure"),
    [("causal", "kron"), ("llama", "exact"), ("bert", "diag"), ("llama", "kron"), ("bert", "kron")],
)
def test_dequantised_twin(kind: str, structure: str) -> None:
    model = adapted(kind, "int8")
    here, twin = (figures(m, kind, structure=structure) for m in (model, dequantised(model)))
    assert_equal(here, twin, 0.08, 0.2)
