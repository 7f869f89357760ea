"""One variance for all weights of a matrix: what is left of a posterior that knows no direction."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.eigen import EigenPosterior, Part


class IsotropicPosterior(EigenPosterior):
    """P_l = (c_l + delta_l) I, c_l the mean of the GGN's diagonal over the matrix: 8 bytes per matrix."""

    spectra = (".curvature",)

    def __init__(self, shapes: Sequence[MatrixShape], curvatures: Sequence[Tensor]) -> None:
        """Keep the curvatures.

        Args:
            shapes: One per matrix.
            curvatures: One non-negative () float64 tensor per matrix.
        """
        super().__init__(shapes)
        self.curvatures = list(curvatures)

    @classmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "IsotropicPosterior":
        """See :meth:`Posterior.from_statistics`: ``curvature`` holds () float64 numbers."""
        return cls(shapes, statistics["curvature"])

    def parts(self, index: int) -> list[Part]:
        """See :meth:`EigenPosterior.parts`."""
        return [Part(self.curvatures[index].view(1, 1), self.shapes[index].size)]

    def rotate(self, index: int, matrices: Tensor) -> list[Tensor]:
        """Return each matrix as one row of coordinates."""
        return [matrices.reshape(len(matrices), 1, -1)]

    def rotate_back(self, index: int, parts: Sequence[Tensor]) -> Tensor:
        """Undo :meth:`rotate`."""
        shape = self.shapes[index]
        return parts[0].reshape(-1, shape.out_features, shape.in_features)

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Posterior.tensors`."""
        return {f"{s.name}.curvature": c for s, c in zip(self.shapes, self.curvatures, strict=True)}

    @classmethod
    def stored(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See :meth:`Posterior.stored`."""
        return {f"{shape.name}.curvature": () for shape in shapes}

    @classmethod
    def from_tensors(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "IsotropicPosterior":
        """See :meth:`Posterior.from_tensors`."""
        return cls(shapes, [tensors[f"{shape.name}.curvature"] for shape in shapes])
