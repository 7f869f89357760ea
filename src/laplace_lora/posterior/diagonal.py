"""The diagonal of the GGN: every weight independent of every other."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.eigen import EigenPosterior, Part


class DiagonalPosterior(EigenPosterior):
    """P = diag(sum_n sum_r (R_n^T J_n)^2) + Delta."""

    spectra = (".diagonal",)

    def __init__(self, shapes: Sequence[MatrixShape], diagonals: Sequence[Tensor]) -> None:
        """Keep the diagonals.

        Args:
            shapes: One per matrix.
            diagonals: One non-negative (out, in) float64 tensor per matrix.
        """
        super().__init__(shapes)
        self.diagonals = list(diagonals)

    @classmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "DiagonalPosterior":
        """See :meth:`Posterior.from_statistics`: ``diagonal`` holds (out, in) float64 sums of squares."""
        return cls(shapes, statistics["diagonal"])

    def parts(self, index: int) -> list[Part]:
        """See :meth:`EigenPosterior.parts`."""
        return [Part(self.diagonals[index])]

    def rotate(self, index: int, matrices: Tensor) -> list[Tensor]:
        """Return the matrices: the weights' own axes are the eigenbasis."""
        return [matrices]

    def rotate_back(self, index: int, parts: Sequence[Tensor]) -> Tensor:
        """Return the matrices."""
        return parts[0]

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Posterior.tensors`."""
        return {f"{s.name}.diagonal": e for s, e in zip(self.shapes, self.diagonals, strict=True)}

    @classmethod
    def stored(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See :meth:`Posterior.stored`."""
        return {f"{shape.name}.diagonal": (shape.out_features, shape.in_features) for shape in shapes}

    @classmethod
    def from_tensors(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "DiagonalPosterior":
        """See :meth:`Posterior.from_tensors`."""
        return cls(shapes, [tensors[f"{shape.name}.diagonal"] for shape in shapes])
