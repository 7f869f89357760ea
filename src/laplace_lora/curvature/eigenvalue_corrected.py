"""EKFAC: the diagonal of every matrix's exact GGN block in the eigenbasis of its Kronecker factors.

George et al. (2018, "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis"): one pass over the
data gives the factors L and R and with them a basis; another, in that basis, the sums of squares of the rotated rows,

    e_i = sum_n sum_r <q_i, J_n^r>^2,

in place of the products of the factors' eigenvalues. Of all matrices that are diagonal in that basis it is the nearest
to the exact block in the Frobenius norm, and of the same trace. Where wide factors are sketched, directions outside a
sketch share the mean of their squares. K-FAC-reduce makes no such basis: it sees means over tokens, which may vanish
where rows do not (of keys the sum of gradients is 0), and what rounding leaves has arbitrary eigenvectors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature, add_sums, require_finite_sums
from laplace_lora.curvature.kronecker import KroneckerCurvature
from laplace_lora.eigenbases import KroneckerBasis, SpectralFactor
from laplace_lora.jacobians import MatrixGradient
from laplace_lora.matrices import MatrixShape

#: Parts that a basis has at most.
PARTS = 4


class EigenbasisCurvature(KroneckerCurvature):
    """The first of two passes: the factors, as for ``kron``."""

    passes = 2

    def next_pass(self) -> "SecondMoments":
        """See :meth:`Curvature.next_pass`."""
        found = self.finalise()
        sides = []
        for side in ("left", "right"):
            stored = zip(*(found[f"{side}_{name}"] for name in _STORED), strict=True)
            sides.append([SpectralFactor(*of_one) for of_one in stored])
        return SecondMoments(self.shapes, self.config, [KroneckerBasis(*both) for both in zip(*sides, strict=True)])


_STORED = ("eigenvalues", "eigenvectors", "tail")


class SecondMoments(Curvature):
    """The second pass: squares of the rows' coordinates, 8 bytes for every eigenvalue."""

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig, bases: Sequence[KroneckerBasis]) -> None:
        """Start empty.

        Args:
            shapes: One per weight matrix.
            config: Settings of the posterior.
            bases: One per weight matrix.
        """
        super().__init__(shapes, config)
        self.bases = tuple(bases)
        self.dtype = self.bases[0].left.vectors.dtype
        self.sums: list[list[Tensor | None]] = [[None] * len(basis.directions) for basis in self.bases]

    def update(self, gradient: MatrixGradient, weights: Tensor) -> None:
        """See :meth:`Curvature.update`."""
        jacobian = gradient.jacobian()
        basis = self.bases[gradient.index]
        parts = basis.rotate(jacobian * weights.to(jacobian)[:, None, None])
        squares: list[Tensor | None] = []
        for position, (part, directions) in enumerate(zip(parts, basis.directions, strict=True)):
            square = part.double().square().sum(dim=0)
            # All parts but the first are tails, whose rows are written in more numbers than they have directions.
            squares.append(square.sum(dim=-1, keepdim=True) / directions if position else square)
        add_sums(self.sums[gradient.index], squares)

    def merge(self, other: Curvature) -> None:
        """See :meth:`Curvature.merge`: both are of one first pass over all data, and have its basis."""
        assert isinstance(other, SecondMoments)
        for mine, its in zip(self.sums, other.sums, strict=True):
            add_sums(mine, its)

    def finalise(self) -> dict[str, list[Tensor]]:
        """See :meth:`Curvature.finalise`.

        Returns:
            ``left_eigenvectors`` and ``right_eigenvectors`` (width, m) in the Jacobians' dtype, and for each of the
            four parts that a basis may have its ``part<i>_eigenvalues``, float64, (a, b) or of a tail (a, 1); empty
            where a matrix's basis has no such part.
        """
        found: dict[str, list[Tensor]] = {
            "left_eigenvectors": [basis.left.vectors for basis in self.bases],
            "right_eigenvectors": [basis.right.vectors for basis in self.bases],
        }
        for shape, basis, sums in zip(self.shapes, self.bases, self.sums, strict=True):
            values = [part if total is None else total for part, total in zip(_zeros(basis), sums, strict=True)]
            require_finite_sums(values, shape)
            values += [values[0].new_zeros(0)] * (PARTS - len(values))
            for position, tensor in enumerate(values):
                found.setdefault(f"part{position}_eigenvalues", []).append(tensor)
        return found


def _zeros(basis: KroneckerBasis) -> list[Tensor]:
    return [torch.zeros_like(values) for values in basis.eigenvalues()]
