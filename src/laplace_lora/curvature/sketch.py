"""The mergeable sketch of a wide Kronecker factor: nothing is d x d (DESIGN, section 2, item 5).

Of F = sum_b w_b M_b M_b^T only Y = F Omega is accumulated, Omega in R^(d x m) random, orthonormal and the same for
every sum of one width, and the exact trace. At the end the Nystrom approximation

    F  ~  Y (Omega^T Y)^-1 Y^T  =  V diag(mu) V^T  <=  F

is formed in float64, with a small multiple of Omega added to Y so that the inverse exists (Tropp, Yurtsever, Udell &
Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from streaming data", NeurIPS 2017, algorithm 3).
What it misses of the trace is spread evenly: tau = (tr F - sum mu) / d, and F ~ V diag(mu) V^T + tau I.

It equals F, up to rounding, where the rank of F is at most m. Without the tail the curvature is understated and
variances can only be too large; with (tr F - sum mu) I in the tail's place they can only be too small. Y and the trace
are sums, so that batches and parts of a data set may come in any order.
"""

import functools

import torch
from torch import Tensor

from laplace_lora.curvature.factors import ROUNDING, FactorSum, LowRankFactor, added, as_rows
from laplace_lora.errors import LaplaceLoRAError


class SketchedFactor(LowRankFactor):
    """Y = F Omega and tr F: 8 d m bytes; Omega, 4 d m bytes in float32, is shared by all sums of a width."""

    def __init__(self, width: int, rank: int) -> None:
        """Start empty; see :class:`LowRankFactor`."""
        super().__init__(width, rank)
        self.products: Tensor | None = None
        self._dtype = torch.float32

    def add(self, stack: Tensor, weights: Tensor | None = None) -> None:
        """See :meth:`FactorSum.add`."""
        self.add_part(self.part(stack, weights))

    def part(self, stack: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what a batch adds, so that sums of the same vectors compute it once.

        Args:
            stack: As for :meth:`add`.
            weights: As for :meth:`add`.

        Returns:
            (d, m) and the trace, in the stack's dtype.
        """
        rows = as_rows(stack)
        images = rows @ random_basis(self.width, self.rank, stack.dtype, str(stack.device))
        squares = torch.linalg.vector_norm(stack, dim=(1, 2)).square()
        if weights is None:
            return rows.mT @ images, squares.sum()
        # The images are narrower than the rows, and weighting them is enough.
        weights = weights.to(images)
        images = images * weights.repeat_interleave(stack.shape[2])[:, None]
        return rows.mT @ images, weights @ squares

    def add_part(self, part: tuple[Tensor, Tensor]) -> None:
        """Add what :meth:`part` returned.

        Args:
            part: Products and trace.
        """
        self._take(*part, part[0].dtype)

    def merge(self, other: FactorSum) -> None:
        """See :meth:`FactorSum.merge`."""
        assert isinstance(other, SketchedFactor) and other.rank == self.rank
        if other.products is not None and other._trace is not None:
            self._take(other.products, other._trace, other._dtype)

    def subtract(self, stack: Tensor, precision: float) -> None:
        """See :meth:`FactorSum.subtract`."""
        assert self.products is not None and self._trace is not None
        rows = as_rows(stack)
        product = rows.mT @ (rows @ self._omega())
        self.rounding += ROUNDING * precision * float(product.norm())
        self.products -= product
        self._trace -= rows.square().sum()

    def _omega(self) -> Tensor:
        assert self.products is not None
        return random_basis(self.width, self.rank, self._dtype, str(self.products.device)).double()

    def _take(self, products: Tensor, trace: Tensor, dtype: torch.dtype) -> None:
        # The sum is as exact as its coarsest part, in whatever order they come.
        coarser = self.products is not None and torch.finfo(self._dtype).eps > torch.finfo(dtype).eps
        self._dtype = self._dtype if coarser else dtype
        self.products, self._trace = added(self.products, products), added(self._trace, trace)

    @property
    def held(self) -> list[Tensor]:
        """See :attr:`FactorSum.held`."""
        return [tensor for tensor in (self.products, self._trace) if tensor is not None]

    def spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`FactorSum.spectrum`: Nystrom, the tail's tau on every direction."""
        assert self.products is not None
        precision = torch.finfo(self._dtype).eps
        if self.rounding > 0.0:  # a difference is known to the rounding of what it is one of
            precision = max(precision, self.rounding / max(float(self.products.norm()), self.rounding))
        values, vectors = nystrom(self.products, self._omega(), precision)
        values = torch.where(values > self.rounding, values, 0.0)
        tail = ((self.trace() - values.sum()) / self.width).clamp(min=0.0)
        return values + tail, vectors, tail


def nystrom(products: Tensor, omega: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of Y (Omega^T Y)^-1 Y^T, stabilised by a shift.

    Args:
        products: (d, m) Y = F Omega, float64; F positive semi-definite.
        omega: (d, m) Omega, float64, of full rank.
        precision: Rounding unit of the products.

    Returns:
        (m,) values, not below 0, the largest first; and (d, m) orthonormal vectors.

    Raises:
        LaplaceLoRAError: F is far from positive semi-definite.
    """
    rank = products.shape[1]
    norm = float(torch.linalg.vector_norm(products))
    if norm == 0.0:
        return products.new_zeros(rank), torch.linalg.qr(omega).Q
    # Y / |Y|: squares of tiny curvatures would underflow.
    scaled = products / norm
    # What is shifted away is lost to the tail, so that the smallest shift that does is best.
    for shift in precision * 10.0 ** torch.arange(-1.0, 8.0, dtype=torch.float64):
        shifted = scaled + shift * omega
        core = omega.mT @ shifted
        root, failed = torch.linalg.cholesky_ex(0.5 * (core + core.mT))
        if not int(failed):
            break
    else:
        raise LaplaceLoRAError(
            "a sketched Kronecker factor is not positive semi-definite, by more than rounding; please report it, and "
            "use a factor_rank as large as the widest layer meanwhile."
        )
    half = torch.linalg.solve_triangular(root, shifted.mT, upper=False).mT
    basis, triangle = torch.linalg.qr(half)
    # The singular vectors of the small triangle, rather than of all of it: d m^2 operations once instead of many times.
    vectors, singular, _ = torch.linalg.svd(triangle)
    return norm * (singular.square() - shift).clamp(min=0.0), basis @ vectors


@functools.lru_cache(maxsize=32)
def random_basis(width: int, rank: int, dtype: torch.dtype, device: str) -> Tensor:
    """Return Omega: an orthonormal basis of a random subspace, the same at every call.

    Args:
        width: d.
        rank: m.
        dtype: Of the products it is for; the float64 numbers are rounded to it.
        device: Where it is needed.

    Returns:
        (d, m).
    """
    generator = torch.Generator().manual_seed(1_000_003 * width + rank)
    gaussian = torch.randn(width, rank, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(gaussian).Q.to(dtype).to(device)
