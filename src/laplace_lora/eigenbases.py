"""Bases of a weight matrix's space in which a Kronecker product of two factors is diagonal.

A factor knows some eigenvectors by name and has one eigenvalue, its tail, for all other directions. With
L = U diag(lam) U^T + t I_U and R = V diag(mu) V^T + s I_V (I_U, I_V the projections off U and V), the eigenspaces of
L (x) R are U x V with lam_i mu_j, U x off V with lam_i s, off U x V with t mu_j, and off U x off V with t s: a weight
matrix splits into four parts (DESIGN, section 2, item 6). Curvature and posterior both turn matrices into such a basis.
"""

import dataclasses
from collections.abc import Sequence

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


@dataclasses.dataclass(frozen=True)
class KroneckerBasis:
    """The basis that two factors make of (out, in) matrices, in one to four orthogonal parts.

    The parts are: short side's eigenvectors by long side's; where the long side has a tail, the short side's by what is
    off the long side's; where the short side has one, the long side's by what is off the short side's; and where both
    have, what is off both. Short and long are the widths of the sides, whichever is left or right.

    Attributes:
        left: Of the rows, out wide.
        right: Of the columns, in wide.
    """

    left: SpectralFactor
    right: SpectralFactor

    @property
    def swapped(self) -> bool:
        """Whether the right side is the short one."""
        return len(self.left.vectors) > len(self.right.vectors)

    @property
    def short(self) -> SpectralFactor:
        """The factor of the short side."""
        return self.right if self.swapped else self.left

    @property
    def long(self) -> SpectralFactor:
        """The factor of the long side."""
        return self.left if self.swapped else self.right

    @property
    def directions(self) -> list[int]:
        """Of every part, how many eigenvectors one eigenvalue stands for: 1, or the dimension of a row of a tail."""
        short, long = self.short, self.long
        found = [1]
        if long.outside:
            found.append(long.outside)
        if short.outside:
            found.append(short.outside)
        if short.outside and long.outside:
            found.append(short.outside * long.outside)
        return found

    def eigenvalues(self) -> list[Tensor]:
        """Return those of the Kronecker product, by part: (a, b), or (a, 1) of a tail."""
        short, long = self.short, self.long
        found = [short.values[:, None] * long.values]
        if long.outside:
            found.append((short.values * long.tail)[:, None])
        if short.outside:
            found.append((long.values * short.tail)[:, None])
        if short.outside and long.outside:
            found.append((short.tail * long.tail)[None, None])
        return found

    def rotate(self, matrices: Tensor) -> list[Tensor]:
        """Return the coordinates of matrices in every part.

        Args:
            matrices: (B, out, in).

        Returns:
            (B, a, b) each; of a tail, whose rows are written in more numbers than they have dimensions.
        """
        short, long = self.short, self.long
        if self.swapped:
            matrices = matrices.mT
        turned = short.vectors.to(matrices.dtype).mT @ matrices
        core, rest = long.split(turned)
        found = [core] if rest is None else [core, rest]
        if short.outside:
            off = matrices - short.vectors.to(matrices.dtype) @ turned
            core, rest = long.split(off)
            found.append(core.mT)
            if rest is not None:
                found.append(rest.flatten(start_dim=1)[:, None])
        return found

    def rotate_back(self, parts: Sequence[Tensor]) -> Tensor:
        """Undo :meth:`rotate`.

        Args:
            parts: As from there.

        Returns:
            (B, out, in).
        """
        short, long = self.short, self.long
        left = list(parts)
        core, rest = left.pop(0), left.pop(0) if long.outside else None
        matrices = short.vectors.to(core.dtype) @ long.join(core, rest)
        if short.outside:
            core, rest = left.pop(0).mT, left[0].view_as(matrices) if long.outside else None
            matrices = matrices + long.join(core, rest)
        return matrices.mT if self.swapped else matrices
