"""K-FAC: the block of each weight matrix is a Kronecker product L (x) R of two small factors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.eigen import EigenPosterior


class KroneckerPosterior(EigenPosterior):
    """P_l = L_l (x) R_l + delta_l I, with L = U diag(lam) U^T and R = V diag(mu) V^T.

    Exact for one example of one token and two classes, and for a single output direction shared by all
    examples; an approximation otherwise. Modules are independent: curvature between them is not seen.
    """

    spectra = ("_eigenvalues",)

    def __init__(
        self,
        shapes: Sequence[MatrixShape],
        left: Sequence[tuple[Tensor, Tensor]],
        right: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Keep the factors' eigendecompositions.

        Args:
            shapes: One per matrix.
            left: Per matrix the eigenvalues (out,) and eigenvectors (out, out) of L.
            right: Per matrix the eigenvalues (in,) and eigenvectors (in, in) of R.
        """
        values = [lam[:, None] * mu[None, :] for (lam, _), (mu, _) in zip(left, right, strict=True)]
        super().__init__(shapes, values)
        self.left = list(left)
        self.right = list(right)

    @classmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "KroneckerPosterior":
        """Decompose the factors.

        Args:
            shapes: One per matrix.
            statistics: ``left``: (out, out) positive semi-definite float64 factors L, which carry the number
                of examples; ``right``: (in, in) factors R.
            dtype: dtype of the Jacobians to come; eigenvectors are kept in it, eigenvalues in float64.

        Returns:
            The posterior.
        """
        left, right = ([_decompose(factor, dtype) for factor in statistics[side]] for side in ("left", "right"))
        return cls(shapes, left, right)

    def rotate(self, index: int, matrices: Tensor) -> Tensor:
        """Return U^T J V."""
        left, right = self.left[index][1].to(matrices.dtype), self.right[index][1].to(matrices.dtype)
        return _between(left.transpose(0, 1), matrices, right)

    def rotate_back(self, index: int, matrices: Tensor) -> Tensor:
        """Return U E V^T."""
        left, right = self.left[index][1].to(matrices.dtype), self.right[index][1].to(matrices.dtype)
        return _between(left, matrices, right.transpose(0, 1))

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Posterior.tensors`."""
        named = {}
        for shape, left, right in zip(self.shapes, self.left, self.right, strict=True):
            for side, (values, vectors) in (("left", left), ("right", right)):
                named[f"{shape.name}.{side}_eigenvalues"] = values
                named[f"{shape.name}.{side}_eigenvectors"] = vectors
        return named

    @classmethod
    def stored(cls, shapes: Sequence[MatrixShape], rows: int) -> dict[str, tuple[int, ...]]:
        """See :meth:`Posterior.stored`."""
        sizes: dict[str, tuple[int, ...]] = {}
        for shape in shapes:
            for side, count in (("left", shape.out_features), ("right", shape.in_features)):
                sizes[f"{shape.name}.{side}_eigenvalues"] = (count,)
                sizes[f"{shape.name}.{side}_eigenvectors"] = (count, count)
        return sizes

    @classmethod
    def from_tensors(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "KroneckerPosterior":
        """See :meth:`Posterior.from_tensors`."""
        sides = {
            side: [
                (tensors[f"{shape.name}.{side}_eigenvalues"], tensors[f"{shape.name}.{side}_eigenvectors"])
                for shape in shapes
            ]
            for side in ("left", "right")
        }
        return cls(shapes, sides["left"], sides["right"])


def _between(left: Tensor, matrices: Tensor, right: Tensor) -> Tensor:
    """Return left M right for a stack of matrices M, (B, out, in)."""
    if matrices.shape[1] > matrices.shape[2]:
        swapped = _between(right.transpose(0, 1), matrices.transpose(1, 2), left.transpose(0, 1))
        return swapped.transpose(1, 2)
    # The long side first and on the right, where the whole stack is one product of two flat matrices: one per
    # example, which is what a product on the left comes to, is several times slower.
    return left @ (matrices.reshape(-1, matrices.shape[2]) @ right).view_as(matrices)


def _decompose(factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(factor)
    # Rounding can leave eigenvalues of a positive semi-definite matrix slightly below 0.
    return values.clamp(min=0.0), vectors.to(dtype).contiguous()
