"""K-FAC with a low-rank correction over all weight matrices jointly: P = W W^T + B + Delta.

W W^T <= F is the sketch of the whole GGN (:mod:`laplace_lora.curvature.low_rank`), curvature between modules included,
and B = blockdiag(L_l (x) R_l) the Kronecker factors of what it leaves, F - W W^T
(:mod:`laplace_lora.curvature.kron_low_rank`).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.eigenbases import SpectralFactor
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.kronecker import KroneckerPosterior
from laplace_lora.posterior.low_rank_plus import LowRankPlusPosterior


class KroneckerLowRankPosterior(LowRankPlusPosterior):
    """The GGN's posterior by m directions of all matrices together, and K-FAC for the rest.

    Exact where the GGN's rank, at most N (K-1), is no larger than m; every matrix's trace is the GGN's at any m.
    Bytes: 4 m for every weight (8 m with float64 models), and the factors of :class:`KroneckerPosterior`; in memory
    their eigenvectors once more, in float64.
    """

    structure = "kron_low_rank"
    spectra = KroneckerPosterior.spectra

    def __init__(self, shapes: Sequence[MatrixShape], factors: Sequence[Tensor], kronecker: KroneckerPosterior) -> None:
        """Keep both parts.

        Args:
            shapes: One per matrix.
            factors: Per matrix its rows of W, (out * in, m).
            kronecker: B.
        """
        super().__init__(shapes, factors, _in_float64(kronecker))
        self.kronecker = kronecker

    @classmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "KroneckerLowRankPosterior":
        """See :meth:`Posterior.from_statistics`: ``factor`` holds rows of W, the others are those of ``kron``."""
        return cls(shapes, statistics["factor"], KroneckerPosterior.from_statistics(shapes, statistics, dtype))

    def without_tail(self) -> "KroneckerLowRankPosterior":
        """See :meth:`Posterior.without_tail`."""
        bare = self.kronecker.without_tail()
        if bare is self.kronecker:
            return self
        found = type(self)(self.shapes, self.factors, bare)
        found.assign_groups(self.groups)
        return found

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Posterior.tensors`."""
        return self.named_factors() | self.kronecker.tensors()

    @classmethod
    def stored(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See :meth:`Posterior.stored`."""
        return cls.stored_factors(shapes, tensors) | KroneckerPosterior.stored(shapes, tensors)

    @classmethod
    def from_tensors(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "KroneckerLowRankPosterior":
        """See :meth:`Posterior.from_tensors`."""
        factors = [tensors[f"{shape.name}.factor"] for shape in shapes]
        return cls(shapes, factors, KroneckerPosterior.from_tensors(shapes, tensors))


def _in_float64(kronecker: KroneckerPosterior) -> KroneckerPosterior:
    """Make eigenvectors, orthonormal to the rounding of their dtype, orthonormal to that of float64."""

    def finer(factor: SpectralFactor) -> SpectralFactor:
        basis, triangle = torch.linalg.qr(factor.vectors.double())
        signs = torch.where(triangle.diagonal() < 0.0, -1.0, 1.0)
        return SpectralFactor(factor.values, basis * signs, factor.tail)

    return KroneckerPosterior(kronecker.shapes, *([finer(f) for f in s] for s in (kronecker.left, kronecker.right)))
