"""K-FAC: the block of each weight matrix is a Kronecker product L (x) R of two factors.

Its eigenspaces are those of :class:`laplace_lora.eigenbases.KroneckerBasis`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.eigenbases import KroneckerBasis, SpectralFactor
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.eigen import EigenPosterior, Part

_SIDES = ("left", "right")


class KroneckerPosterior(EigenPosterior):
    """P_l = L_l (x) R_l + delta_l I.

    Exact for one example of one token and two classes, and for a single output direction shared by all
    examples; an approximation otherwise. Modules are independent: curvature between them is not seen.
    Bytes: (4 d + 8) m for every factor of m directions (8 d + 8 with float64 models) and 8 for its tail: m d, not d^2.
    """

    spectra = ("_eigenvalues", "_tail")

    def __init__(
        self, shapes: Sequence[MatrixShape], left: Sequence[SpectralFactor], right: Sequence[SpectralFactor]
    ) -> None:
        """Keep the factors.

        Args:
            shapes: One per matrix.
            left: Per matrix L, (out, out).
            right: Per matrix R, (in, in).
        """
        super().__init__(shapes)
        self.left = list(left)
        self.right = list(right)

    @classmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "KroneckerPosterior":
        """Take the factors' spectra.

        Args:
            shapes: One per matrix.
            statistics: ``left_eigenvalues`` (m,), ``left_eigenvectors`` (out, m) and ``left_tail`` () of the factors L,
                which carry the number of examples; ``right_...`` of the factors R.
            dtype: dtype of the Jacobians to come.

        Returns:
            The posterior.
        """
        left, right = (
            [
                SpectralFactor(*found)
                for found in zip(
                    *(statistics[f"{side}_{name}"] for name in ("eigenvalues", "eigenvectors", "tail")), strict=True
                )
            ]
            for side in _SIDES
        )
        return cls(shapes, left, right)

    def basis(self, index: int) -> KroneckerBasis:
        """Return the basis of a matrix's space."""
        return KroneckerBasis(self.left[index], self.right[index])

    def parts(self, index: int) -> list[Part]:
        """See :meth:`EigenPosterior.parts`."""
        basis = self.basis(index)
        return [Part(*both) for both in zip(basis.eigenvalues(), basis.directions, strict=True)]

    def rotate(self, index: int, matrices: Tensor) -> list[Tensor]:
        """See :meth:`EigenPosterior.rotate`."""
        return self.basis(index).rotate(matrices)

    def rotate_back(self, index: int, parts: Sequence[Tensor]) -> Tensor:
        """See :meth:`EigenPosterior.rotate_back`."""
        return self.basis(index).rotate_back(parts)

    def without_tail(self) -> "KroneckerPosterior":
        """See :meth:`Posterior.without_tail`."""
        if not any(factor.outside and float(factor.tail) > 0.0 for factor in (*self.left, *self.right)):
            return self
        found = type(self)(self.shapes, *([f.without_tail() for f in side] for side in (self.left, self.right)))
        found.assign_groups(self.groups)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Posterior.tensors`."""
        named = {}
        for shape, *factors in zip(self.shapes, self.left, self.right, strict=True):
            for side, factor in zip(_SIDES, factors, strict=True):
                named[f"{shape.name}.{side}_eigenvalues"] = factor.values
                named[f"{shape.name}.{side}_eigenvectors"] = factor.vectors
                if factor.outside:
                    named[f"{shape.name}.{side}_tail"] = factor.tail
        return named

    @classmethod
    def stored(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See :meth:`Posterior.stored`: a factor's eigenvectors say how many directions it has, from 1 to its width."""
        sizes: dict[str, tuple[int, ...]] = {}
        for shape in shapes:
            for side, width in zip(_SIDES, (shape.out_features, shape.in_features), strict=True):
                vectors = tensors.get(f"{shape.name}.{side}_eigenvectors")
                known = vectors is not None and vectors.dim() == 2 and 0 < vectors.shape[1] < width
                rank = vectors.shape[1] if vectors is not None and known else width
                sizes[f"{shape.name}.{side}_eigenvalues"] = (rank,)
                sizes[f"{shape.name}.{side}_eigenvectors"] = (width, rank)
                if rank < width:
                    sizes[f"{shape.name}.{side}_tail"] = ()
        return sizes

    @classmethod
    def from_tensors(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "KroneckerPosterior":
        """See :meth:`Posterior.from_tensors`."""

        def factor(name: str, side: str) -> SpectralFactor:
            values, vectors = (tensors[f"{name}.{side}_eigen{kind}"] for kind in ("values", "vectors"))
            return SpectralFactor(values, vectors, tensors.get(f"{name}.{side}_tail", values.new_zeros(())))

        return cls(shapes, *([factor(shape.name, side) for shape in shapes] for side in _SIDES))
