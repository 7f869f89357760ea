"""What the readouts' tests share: fitting in one call, and comparisons."""

import math
from collections.abc import Sequence

import peft
import torch
from torch import Tensor

from engine.support import close
from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.readouts import Readout
from tiny_models import Batch


def fit(model: peft.PeftModel, readout: Readout | None, loader: Sequence[Batch], **settings: object) -> LaplaceLoRA:
    """Fit a posterior without a progress bar."""
    return LaplaceLoRA(model, LaplaceConfig(**{"progress": False, **settings}), readout=readout).fit(loader)


def same(left: LaplaceLoRA, right: LaplaceLoRA, batch: Batch, rtol: float = 1e-9) -> None:
    """Assert that two posteriors predict the same and have the same evidence."""
    close(left.predict(batch).covariance, right.predict(batch).covariance, rtol)
    assert math.isclose(left.log_marginal_likelihood(), right.log_marginal_likelihood(), rel_tol=1e-10)


def each_close(tensors: Tensor, expected: Sequence[Tensor], rtol: float = 1e-8) -> None:
    """Assert equality example by example, where examples have different numbers of options.

    Args:
        tensors: (N, K) or (N, K, K); beyond an example's own options 0 or -inf.
        expected: One tensor per example.
        rtol: Bound of the error relative to the largest expected entry of all.
    """
    assert len(tensors) == len(expected)
    largest = max(float(e.abs().max()) for e in expected)
    for got, wanted in zip(tensors, expected, strict=True):
        inside = tuple(slice(0, size) for size in wanted.shape)
        error = float((got[inside] - wanted).abs().max()) / largest
        assert error <= rtol, f"relative error {error:.2e}, allowed {rtol:.0e}"
        outside = torch.ones_like(got, dtype=torch.bool)
        outside[inside] = False
        assert bool(((got[outside] == 0) | torch.isneginf(got[outside])).all())
