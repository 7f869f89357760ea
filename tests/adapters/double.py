"""Models that compute in float64 throughout, where transformers passes through float32.

What does so: RMS norms, rotary angles, and the softmax of eager attention. Without it, two ways of computing the same
Jacobian differ by 1e-7, and a mistake of that size could not be seen.
"""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn


class DoubleNorm(nn.Module):
    """An RMS norm in the dtype of its input; Gemma's multiply by 1 + w."""

    def __init__(self, norm: nn.Module) -> None:
        """Share the weight of the norm that this one replaces."""
        super().__init__()
        self.weight = norm.weight
        self.eps = getattr(norm, "variance_epsilon", None) or norm.eps
        self.offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise the last dimension."""
        normed = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.offset + self.weight) * normed


class DoubleRotary(nn.Module):
    """Rotary angles in float64, of the frequencies that the library has."""

    def __init__(self, rotary: nn.Module) -> None:
        """Take the frequencies over; Gemma 3 has one set per type of layer."""
        super().__init__()
        names = [name for name, _ in rotary.named_buffers() if name.endswith("inv_freq") and "original" not in name]
        self.frequencies = {name.removesuffix("inv_freq").rstrip("_"): getattr(rotary, name).double() for name in names}

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor, layer_type: str = "") -> tuple[Tensor, Tensor]:
        """Return cosines and sines for every position."""
        angles = position_ids[..., None].double() * self.frequencies[layer_type]
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


def compute_in_double(model: nn.Module) -> nn.Module:
    """Replace the norms and rotary embeddings of a float64 model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, DoubleNorm(child))
            elif type(child).__name__.endswith("RotaryEmbedding"):
                setattr(parent, name, DoubleRotary(child))
    return model


@contextlib.contextmanager
def double_softmax() -> Iterator[None]:
    """Let a softmax of float64 values stay in float64: eager attention asks for float32."""
    original = nn.functional.softmax

    def softmax(values: Tensor, dim: int | None = None, dtype: torch.dtype | None = None, **options: object) -> Tensor:
        return original(values, dim=dim, dtype=None if values.dtype == torch.float64 else dtype, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "softmax", softmax)
        yield
