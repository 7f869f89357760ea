"""The worker of bayesian-lora, used as its README and its example say, with the example's ranks.

Where README and example differ, what works: raw logits in ``fwd_call`` (README), ``jacobian_mean`` from
``bayesian_lora.main``, an output callback and the small factors' Cholesky decomposition before ``variance`` (example).
"""

from typing import Any

import torch
import worker
from bayesian_lora import (
    calculate_kronecker_factors,
    cholesky_decompose_small_factors,
    stable_cholesky,
    variance,
)
from bayesian_lora.main import jacobian_mean
from case import PRIOR_PRECISION, Batch, Case, inputs_of
from torch import Tensor, nn
from transformers import BatchEncoding
from worker import Factory, Probe, Tool, tensor_bytes

_PACKAGES = ("bayesian-lora", "torch", "transformers", "peft", "numpy")
_LORA_RANK = 8
_FACTOR_RANK = 10
_WIDEST_WHOLE_FACTOR = 100
_SAMPLES = 100_000


def forward_call(model: nn.Module, batch: Batch) -> Tensor:
    """Return (B, K) logits; a classification model has chosen the last token already."""
    return model(**inputs_of(batch)).logits


def make(model: nn.Module) -> Tool:
    """Make the tool on one model."""

    def fit(batches: list[Batch]) -> dict[str, tuple[Tensor, Tensor]]:
        factors = calculate_kronecker_factors(
            model, forward_call, batches, _FACTOR_RANK, _WIDEST_WHOLE_FACTOR, ["lora"]
        )
        model.eval()  # it leaves the model in training mode, with the last gradients
        model.zero_grad()
        return cholesky_decompose_small_factors(factors, _WIDEST_WHOLE_FACTOR, "cpu", torch.float32)

    def gaussian(factors: dict[str, tuple[Tensor, Tensor]], batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = BatchEncoding(inputs_of(batch))
        with torch.no_grad():
            jacobian, mean = jacobian_mean(model, inputs, output_callback=lambda outputs: outputs.logits)
            prior_variance = torch.tensor(1.0 / PRIOR_PRECISION)
            classes = mean.shape[-1]
            spread = variance(inputs, jacobian, factors, prior_variance, classes, _LORA_RANK, _FACTOR_RANK, "cpu")
        return mean, spread

    def predict(factors: dict[str, tuple[Tensor, Tensor]], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        mean, spread = gaussian(factors, batch)
        with torch.no_grad():
            draws = torch.randn(_SAMPLES, *mean.shape, 1)
            logits = mean + (stable_cholesky(spread) @ draws).squeeze(-1)
            return mean, spread, logits.softmax(-1).mean(0)

    return Tool(
        fit=fit,
        predict=predict,
        covariance=lambda factors, batch: gaussian(factors, batch)[1],
        stored_bytes=lambda factors: tensor_bytes(factors.values()),
    )


def import_as_in_readme(model: nn.Module, case: Case) -> Any:
    """The README takes ``jacobian_mean`` to be public."""
    from bayesian_lora import jacobian_mean as public

    return public


def predict_as_in_readme(model: nn.Module, case: Case) -> Any:
    """The README gives target ids and no output callback."""
    return jacobian_mean(_lora_only(model), BatchEncoding(inputs_of(case.tiny)), torch.arange(case.classes))


def predict_with_head(model: nn.Module, case: Case) -> Any:
    """A head that PEFT trains in full is among the parameters that require a gradient."""
    return jacobian_mean(model, BatchEncoding(inputs_of(case.tiny)), output_callback=lambda outputs: outputs.logits)


def sample_as_in_readme(model: nn.Module, case: Case) -> Any:
    """The README multiplies Cholesky factors of shape (samples, B, K, K) with draws of shape (samples, B, K)."""
    mean = torch.zeros(2, len(case.test["labels"]), case.classes)
    return torch.eye(case.classes).expand(*mean.shape, case.classes) @ torch.randn_like(mean)


def _lora_only(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "lora_" in name)
    return model


FACTORIES: dict[str, Factory] = {"default": make}
PROBES: dict[str, Probe] = {
    "bayesian_lora.jacobian_mean": import_as_in_readme,
    "jacobian_mean with a trained head": predict_with_head,
    "the README's random draws": sample_as_in_readme,
    # Last: it freezes the head.
    "jacobian_mean without output_callback": predict_as_in_readme,
}

if __name__ == "__main__":
    worker.main(FACTORIES, PROBES, _PACKAGES)
