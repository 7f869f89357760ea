"""The diagonal of the GGN, from true per-example Jacobians."""

from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature, add_sums
from laplace_lora.jacobians import MatrixGradient
from laplace_lora.matrices import MatrixShape


class DiagonalCurvature(Curvature):
    """sum_n sum_r (R_n^T J_n)^2 for every weight: one float64 number each."""

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig) -> None:
        """Start empty; see :class:`Curvature`."""
        super().__init__(shapes, config)
        self.squares: list[Tensor | None] = [None] * len(self.shapes)

    def update(self, gradient: MatrixGradient, weights: Tensor) -> None:
        """See :meth:`Curvature.update`."""
        jacobian = gradient.jacobian()
        self.dtype = jacobian.dtype
        squares = torch.einsum("n,noi->oi", weights.to(jacobian).square(), jacobian.square()).double()
        held = self.squares[gradient.index]
        self.squares[gradient.index] = squares if held is None else held.add_(squares)

    def merge(self, other: Curvature) -> None:
        """See :meth:`Curvature.merge`."""
        assert isinstance(other, DiagonalCurvature)
        add_sums(self.squares, other.squares)

    def finalise(self) -> dict[str, list[Tensor]]:
        """See :meth:`Curvature.finalise`: the ``diagonal``."""
        return {"diagonal": [square for square in self.squares if square is not None]}
