"""Kronecker factors of each weight matrix's GGN block, under three conventions (DESIGN, section 2, item 5).

Rows r of example n have output gradients g_nt (t runs over its T_n real tokens) and inputs x_nt, and
J = sum_t g_nt x_nt^T. The exact block is sum_n sum_r vec(J) vec(J)^T, approximated by L (x) R:

    fitted  L = sum_n sum_r J J^T,             R = (tr L)^-1 sum_n sum_r J^T J
    expand  L = sum_n sum_r sum_t g g^T,       R = (sum_n T_n)^-1 sum_n sum_t x x^T
    reduce  L = sum_n sum_r (sum_t g)(...)^T,  R = N^-1 sum_n xbar xbar^T, xbar the mean over tokens

``fitted`` has the exact block's trace. With a linear network, Gaussian likelihood and mean pooling,
``fitted`` and ``reduce`` equal the exact block; so do all three for one example of one token and two
classes. The number of examples enters L alone. A head that is applied at every token but read at one
counts that one alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature, add_product, add_sums
from laplace_lora.errors import MemoryLimitError
from laplace_lora.jacobians import MatrixGradient
from laplace_lora.matrices import MatrixShape


class KroneckerCurvature(Curvature):
    """Sums that give both factors of every matrix: (out^2 + in^2) float64 numbers each."""

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig) -> None:
        """Start empty; see :class:`Curvature`."""
        super().__init__(shapes, config)
        self.left: list[Tensor | None] = [None] * len(self.shapes)
        self.right: list[Tensor | None] = [None] * len(self.shapes)
        # What R is divided by in expand: tokens (or pooled rows) that entered it.
        self.inputs_seen = [0.0] * len(self.shapes)

    def check_memory(self, rows_per_example: int, examples: int | None) -> None:
        """See :meth:`Curvature.check_memory`.

        Raises:
            MemoryLimitError: One factor alone would exceed ``memory_limit_bytes``, as those of a vocabulary do.
        """
        for shape in self.shapes:
            side = max(shape.out_features, shape.in_features)
            if 8 * side**2 > self.config.memory_limit_bytes:
                raise MemoryLimitError(
                    f"structure='kron' needs {8 * side**2} bytes for a factor of {shape.name}, {side} wide; the limit "
                    "is "
                    f"{self.config.memory_limit_bytes}. Use structure='diag', retrain without that module, or raise "
                    "LaplaceConfig(memory_limit_bytes=...)."
                )

    def update(self, gradient: MatrixGradient, weights: Tensor) -> None:
        """See :meth:`Curvature.update`."""
        index = gradient.index
        if self.config.kfac == "fitted":
            jacobian = gradient.jacobian()
            self.dtype = jacobian.dtype
            jacobian = jacobian * weights.to(jacobian)[:, None, None]
            out_features, in_features = jacobian.shape[1:]
            by_row = jacobian.transpose(1, 2).reshape(-1, out_features)
            by_column = jacobian.reshape(-1, in_features)
            self.left[index] = add_product(self.left[index], by_row, by_row)
            self.right[index] = add_product(self.right[index], by_column, by_column)
            return
        x, g = gradient.tokens()
        self.dtype = x.dtype
        g = g * weights.to(g)[:, None, None]
        if self.config.kfac == "reduce":
            x, g = _mean_over_tokens(x, gradient.token_mask), g.sum(dim=1)
        g, inputs = g.flatten(end_dim=-2), x.flatten(end_dim=-2)
        self.left[index] = add_product(self.left[index], g, g)
        if gradient.row == 0:
            self.right[index] = add_product(self.right[index], inputs, inputs)
            masked = gradient.token_mask if self.config.kfac == "expand" else None
            self.inputs_seen[index] += inputs.shape[0] if masked is None else float(masked.sum())

    def merge(self, other: Curvature) -> None:
        """See :meth:`Curvature.merge`."""
        assert isinstance(other, KroneckerCurvature)
        add_sums(self.left, other.left)
        add_sums(self.right, other.right)
        self.inputs_seen = [a + b for a, b in zip(self.inputs_seen, other.inputs_seen, strict=True)]
        self.dtype = torch.promote_types(self.dtype, other.dtype)

    def finalise(self) -> dict[str, list[Tensor]]:
        """See :meth:`Curvature.finalise`: ``left`` and ``right`` factors."""
        lefts: list[Tensor] = []
        rights: list[Tensor] = []
        for left, right, seen in zip(self.left, self.right, self.inputs_seen, strict=True):
            assert left is not None and right is not None
            divisor = float(left.trace()) if self.config.kfac == "fitted" else seen
            lefts.append(left)
            # A matrix whose Jacobians are all 0 (lora_A while lora_B is 0) has no curvature: 0 (x) 0.
            rights.append(right / divisor if divisor > 0.0 else torch.zeros_like(right))
        return {"left": lefts, "right": rights}


def _mean_over_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """Average (B, T, d), 0 at padding, over real tokens."""
    if mask is None:
        return x.mean(dim=1)
    return x.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1).to(x)
