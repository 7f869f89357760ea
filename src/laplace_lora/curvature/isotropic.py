"""The GGN's mean curvature: one number for each weight matrix."""

from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature, add_sums
from laplace_lora.jacobians import MatrixGradient
from laplace_lora.matrices import MatrixShape


class IsotropicCurvature(Curvature):
    """sum_n sum_r |R_n^T J_n|^2, the trace of each matrix's block, over its number of weights."""

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig) -> None:
        """Start empty; see :class:`Curvature`."""
        super().__init__(shapes, config)
        self.traces: list[Tensor | None] = [None] * len(self.shapes)

    def update(self, gradient: MatrixGradient, weights: Tensor) -> None:
        """See :meth:`Curvature.update`."""
        jacobian = gradient.jacobian()
        self.dtype = jacobian.dtype
        squares = torch.linalg.vector_norm(jacobian.double(), dim=(1, 2)).square()
        trace = weights.to(squares).square() @ squares
        held = self.traces[gradient.index]
        self.traces[gradient.index] = trace if held is None else held + trace

    def merge(self, other: Curvature) -> None:
        """See :meth:`Curvature.merge`."""
        assert isinstance(other, IsotropicCurvature)
        add_sums(self.traces, other.traces)

    def finalise(self) -> dict[str, list[Tensor]]:
        """See :meth:`Curvature.finalise`: the ``curvature`` of each matrix, () float64."""
        pairs = zip(self.traces, self.shapes, strict=True)
        return {"curvature": [trace / shape.size for trace, shape in pairs if trace is not None]}
