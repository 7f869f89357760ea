"""EKFAC: diagonal in the eigenbasis of Kronecker factors, with eigenvalues of its own."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.eigenbases import KroneckerBasis, SpectralFactor
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.eigen import EigenPosterior, Part

_SIDES = ("left", "right")


class EigenvalueCorrectedPosterior(EigenPosterior):
    """P_l = Q_l diag(e) Q_l^T + delta_l I, Q_l the eigenvectors of L_l (x) R_l and e the GGN block's diagonal there.

    The nearest to the block, in the Frobenius norm, that Q_l allows; exact where ``kron`` is, and where the block is
    diagonal in that basis. Matrices are independent: curvature between them is not seen.
    Bytes: 4 d m for every factor of m directions (8 d m with float64 models), and 8 for every eigenvalue: of whole
    factors as many as weights, of sketched ones (a + 1) (b + 1) for a by b directions.
    """

    spectra = ("_eigenvalues",)

    def __init__(
        self, shapes: Sequence[MatrixShape], bases: Sequence[KroneckerBasis], values: Sequence[Sequence[Tensor]]
    ) -> None:
        """Keep bases and eigenvalues.

        Args:
            shapes: One per matrix.
            bases: Per matrix its basis; the eigenvalues of its factors do not matter.
            values: Per matrix and part of the basis the eigenvalues, (a, b) or of a tail (a, 1).
        """
        super().__init__(shapes)
        self.bases = list(bases)
        self.values = [list(parts) for parts in values]

    @classmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "EigenvalueCorrectedPosterior":
        """See :meth:`Posterior.from_statistics`.

        Args:
            shapes: One per matrix.
            statistics: As :class:`laplace_lora.curvature.eigenvalue_corrected.SecondMoments` ends with them.
            dtype: dtype of the Jacobians to come.

        Returns:
            The posterior.
        """
        vectors = zip(*(statistics[f"{side}_eigenvectors"] for side in _SIDES), strict=True)
        bases = [_basis(*both) for both in vectors]
        values = [
            [statistics[f"part{part}_eigenvalues"][index] for part in range(len(basis.directions))]
            for index, basis in enumerate(bases)
        ]
        return cls(shapes, bases, values)

    def parts(self, index: int) -> list[Part]:
        """See :meth:`EigenPosterior.parts`."""
        return [Part(*both) for both in zip(self.values[index], self.bases[index].directions, strict=True)]

    def rotate(self, index: int, matrices: Tensor) -> list[Tensor]:
        """See :meth:`EigenPosterior.rotate`."""
        return self.bases[index].rotate(matrices)

    def rotate_back(self, index: int, parts: Sequence[Tensor]) -> Tensor:
        """See :meth:`EigenPosterior.rotate_back`."""
        return self.bases[index].rotate_back(parts)

    def without_tail(self) -> "EigenvalueCorrectedPosterior":
        """See :meth:`Posterior.without_tail`: how curvature is spread over the directions of a tail was not seen."""
        if all(float(value.sum()) == 0.0 for parts in self.values for value in parts[1:]):
            return self
        kept = [[parts[0], *map(torch.zeros_like, parts[1:])] for parts in self.values]
        found = type(self)(self.shapes, self.bases, kept)
        found.assign_groups(self.groups)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Posterior.tensors`."""
        named = {}
        for shape, basis, values in zip(self.shapes, self.bases, self.values, strict=True):
            for side, factor in zip(_SIDES, (basis.left, basis.right), strict=True):
                named[f"{shape.name}.{side}_eigenvectors"] = factor.vectors
            for part, value in enumerate(values):
                named[f"{shape.name}.part{part}_eigenvalues"] = value
        return named

    @classmethod
    def stored(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See :meth:`Posterior.stored`: eigenvectors say how many directions a side has, from 1 to its width."""
        sizes: dict[str, tuple[int, ...]] = {}
        for shape in shapes:
            vectors = []
            for side, width in zip(_SIDES, (shape.out_features, shape.in_features), strict=True):
                found = tensors.get(f"{shape.name}.{side}_eigenvectors")
                known = found is not None and found.dim() == 2 and 0 < found.shape[1] < width
                rank = found.shape[1] if found is not None and known else width
                sizes[f"{shape.name}.{side}_eigenvectors"] = (width, rank)
                vectors.append(torch.empty(width, rank, device="meta"))
            for part, values in enumerate(_basis(*vectors).eigenvalues()):
                sizes[f"{shape.name}.part{part}_eigenvalues"] = tuple(values.shape)
        return sizes

    @classmethod
    def from_tensors(
        cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]
    ) -> "EigenvalueCorrectedPosterior":
        """See :meth:`Posterior.from_tensors`."""
        bases = [_basis(*(tensors[f"{shape.name}.{side}_eigenvectors"] for side in _SIDES)) for shape in shapes]
        values = [
            [tensors[f"{shape.name}.part{part}_eigenvalues"] for part in range(len(basis.directions))]
            for shape, basis in zip(shapes, bases, strict=True)
        ]
        return cls(shapes, bases, values)


def _basis(*vectors: Tensor) -> KroneckerBasis:
    """Make a basis of eigenvectors alone."""
    return KroneckerBasis(*(SpectralFactor(v.new_zeros(v.shape[1]), v, v.new_zeros(())) for v in vectors))
