"""One side of a Kronecker product, by its eigenvalues: some directions known by name, one value for all others."""

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class SpectralFactor:
    """F = V diag(values) V^T + tail (I - V V^T), (d, d); without a tail where V is square.

    Attributes:
        values: (m,) float64 eigenvalues, not below 0.
        vectors: (d, m) orthonormal eigenvectors, in the Jacobians' dtype.
        tail: () float64 eigenvalue of all directions outside.
    """

    values: Tensor
    vectors: Tensor
    tail: Tensor

    @property
    def outside(self) -> int:
        """Number of directions that share the tail's eigenvalue."""
        return self.vectors.shape[0] - self.vectors.shape[1]

    def without_tail(self) -> "SpectralFactor":
        """Return F less tail I: what the sketch is sure of, a lower bound of what it is a sketch of."""
        return SpectralFactor((self.values - self.tail).clamp(min=0.0), self.vectors, self.tail.new_zeros(()))

    def split(self, matrices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split rows into their coordinates along V and what is orthogonal to V.

        Args:
            matrices: (B, n, d).

        Returns:
            (B, n, m), and (B, n, d) or None where nothing can be left.
        """
        # One product of two flat matrices; one per example is several times slower.
        rows = matrices.reshape(-1, matrices.shape[2])
        vectors = self.vectors.to(rows.dtype)
        inside = rows @ vectors
        core = inside.view(*matrices.shape[:2], -1)
        if not self.outside:
            return core, None
        return core, rows.addmm(inside, vectors.mT, alpha=-1.0).view_as(matrices)

    def join(self, core: Tensor, rest: Tensor | None) -> Tensor:
        """Undo :meth:`split`.

        Args:
            core: (B, n, m).
            rest: (B, n, d); only its part orthogonal to V counts, and has to be that already.

        Returns:
            (B, n, d).
        """
        joined = core @ self.vectors.to(core.dtype).mT
        return joined if rest is None else joined + rest
