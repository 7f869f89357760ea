"""Kronecker factors of each weight matrix's GGN block, under four conventions (DESIGN, section 2, item 5).

Rows r of example n have output gradients g_nt (t runs over its T_n real tokens) and inputs x_nt, and
J = sum_t g_nt x_nt^T. The exact block is sum_n sum_r vec(J) vec(J)^T, approximated by L (x) R:

    fitted  L = sum_n sum_r J J^T,             R = (tr L)^-1 sum_n sum_r J^T J
    expand  L = sum_n sum_r sum_t g g^T,       R = (sum_n T_n)^-1 sum_n sum_t x x^T
    reduce  L = sum_n sum_r (sum_t g)(...)^T,  R = N^-1 sum_n xbar xbar^T, xbar the mean over tokens
    official  L as in expand,                  R = N^-1 sum_n sum_t x x^T

``fitted`` has the exact block's trace. With a linear network, Gaussian likelihood and mean pooling,
``fitted`` and ``reduce`` equal the exact block; so do all four for one example of one token and two
classes. The number of examples enters L alone. A head that is applied at every token but read at one
counts that one alone.

``official`` is for comparison: the scale of the code that the paper's figures come from (Yang et al., ICLR 2024), which
is that of ``expand`` times the mean number of tokens. That code sums over padding as well; here padding enters nothing.

A factor no wider than ``widest_whole_factor`` is kept whole; a wider one as a sketch
(:mod:`laplace_lora.curvature.sketch`, or :mod:`laplace_lora.curvature.incremental_svd`), so that nothing is d x d.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature, require_finite_sums
from laplace_lora.curvature.factors import FactorSum, WholeFactor
from laplace_lora.curvature.incremental_svd import TruncatedFactor
from laplace_lora.curvature.sketch import SketchedFactor
from laplace_lora.errors import MemoryLimitError
from laplace_lora.jacobians import MatrixGradient, statistics_dtype
from laplace_lora.matrices import MatrixShape

Sketch = Callable[[int, int], FactorSum]


class KroneckerCurvature(Curvature):
    """Sums that give both factors of every matrix: d^2 float64 numbers for a narrow side, d m for a wide one.

    Attributes:
        sketch: How a factor wider than m is kept, made from its width and m.
    """

    sketch: Sketch = SketchedFactor

    def __init__(self, shapes: Sequence[MatrixShape], config: LaplaceConfig) -> None:
        """Start empty; see :class:`Curvature`."""
        super().__init__(shapes, config)
        self.left = [self._factor(shape.out_features) for shape in self.shapes]
        self.right = [self._factor(shape.in_features) for shape in self.shapes]
        # What R is divided by where it is made of inputs: the tokens that entered it in expand, else the examples.
        self.inputs_seen = [0.0] * len(self.shapes)
        # What the inputs of the matrix before added, by width: q, k and v share theirs, and so do gate and up.
        self._latest: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, tuple[Tensor, Tensor]]] = {}

    def _factor(self, width: int) -> FactorSum:
        whole = width <= self.config.widest_whole_factor
        return WholeFactor(width) if whole else type(self).sketch(width, self.config.sketch_rank)

    def check_memory(self, rows_per_example: int, examples: int | None) -> None:
        """See :meth:`Curvature.check_memory`.

        Raises:
            MemoryLimitError: One factor alone would exceed ``memory_limit_bytes``, as those of a vocabulary do.
        """
        rank = self.config.sketch_rank
        for shape, side in self._sides():
            needed = self._bytes(side)
            if needed > self.config.memory_limit_bytes:
                raise MemoryLimitError(
                    f"structure={self.config.structure!r} needs {needed} bytes for a factor of "
                    f"{shape.name}, {side} wide; the limit is {self.config.memory_limit_bytes}. Lower factor_rank "
                    f"({rank}), use structure='diag', or raise LaplaceConfig(memory_limit_bytes=...)."
                )

    def needed_bytes(self) -> int:
        """Return the bytes of all factors."""
        return sum(self._bytes(side) for _, side in self._sides())

    def _sides(self) -> list[tuple[MatrixShape, int]]:
        return [(shape, side) for shape in self.shapes for side in (shape.out_features, shape.in_features)]

    def _bytes(self, side: int) -> int:
        return 8 * side * (side if side <= self.config.widest_whole_factor else self.config.sketch_rank)

    def update(self, gradient: MatrixGradient, weights: Tensor) -> None:
        """See :meth:`Curvature.update`."""
        index = gradient.index
        if self.config.kfac == "fitted":
            self.add_fitted(index, gradient.jacobian(), weights)
            return
        x, g = gradient.tokens()
        self.dtype, squares = x.dtype, weights.to(g).square()
        if self.config.kfac == "reduce":
            x, g = _mean_over_tokens(x, gradient.token_mask)[:, None], g.sum(dim=1, keepdim=True)
        self.left[index].add(g.mT, squares)
        if gradient.row > 0:
            self._latest.clear()  # all inputs are in
        else:
            self._add_inputs(index, x)
            self.inputs_seen[index] += len(x) if self.config.kfac != "expand" else _tokens(x, gradient.token_mask)

    def add_fitted(self, index: int, jacobian: Tensor, weights: Tensor) -> None:
        """Add one row of every example at one matrix, by the rule ``fitted``.

        Args:
            index: Position of the matrix.
            jacobian: (B, out, in).
            weights: (B,) weights of the directions.
        """
        self.dtype, squares = jacobian.dtype, weights.to(jacobian).square()
        self.left[index].add(jacobian, squares)
        self.right[index].add(jacobian.mT, squares)

    def _add_inputs(self, index: int, x: Tensor) -> None:
        factor = self.right[index]
        if not isinstance(factor, SketchedFactor):
            factor.add(x.mT)
            return
        key = (factor.width, x.device, x.dtype)
        before, part = self._latest.get(key, (None, None))
        if before is None or part is None or before.shape != x.shape or not torch.equal(before, x):
            part = factor.part(x.mT)
            self._latest[key] = (x, part)
        factor.add_part(part)

    def end_batch(self) -> None:
        """See :meth:`Curvature.end_batch`."""
        self._latest.clear()

    def merge(self, other: Curvature) -> None:
        """See :meth:`Curvature.merge`."""
        assert isinstance(other, KroneckerCurvature)
        for mine, its in zip((*self.left, *self.right), (*other.left, *other.right), strict=True):
            mine.merge(its)
        self.inputs_seen = [a + b for a, b in zip(self.inputs_seen, other.inputs_seen, strict=True)]
        self.dtype = torch.promote_types(self.dtype, other.dtype)

    def finalise(self) -> dict[str, list[Tensor]]:
        """See :meth:`Curvature.finalise`.

        Returns:
            ``left_eigenvalues``, ``left_eigenvectors``, ``left_tail`` and the same of ``right``, as
            :meth:`FactorSum.spectrum` gives them; eigenvectors in the Jacobians' dtype.
        """
        found: dict[str, list[Tensor]] = {}
        for shape, left, right, seen in zip(self.shapes, self.left, self.right, self.inputs_seen, strict=True):
            require_finite_sums([*left.held, *right.held], shape)
            divisor = left.trace() if self.config.kfac == "fitted" else seen
            # A matrix whose Jacobians are all 0 (lora_A while lora_B is 0) has no curvature: 0 (x) 0.
            scale = 1.0 / divisor if divisor > 0.0 else 0.0
            for side, factor, multiple in (("left", left, 1.0), ("right", right, scale)):
                values, vectors, tail = factor.spectrum()
                kept = vectors.to(statistics_dtype(self.dtype)).contiguous()
                for name, tensor in (("values", multiple * values), ("vectors", kept)):
                    found.setdefault(f"{side}_eigen{name}", []).append(tensor)
                found.setdefault(f"{side}_tail", []).append(multiple * tail)
        return found


class TruncatedKroneckerCurvature(KroneckerCurvature):
    """The same with the paper's low-rank factors."""

    sketch = TruncatedFactor


def _tokens(x: Tensor, mask: Tensor | None) -> float:
    """Count real tokens of (B, T, d)."""
    return x.shape[0] * x.shape[1] if mask is None else float(mask.sum())


def _mean_over_tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """Average (B, T, d), 0 at padding, over real tokens."""
    if mask is None:
        return x.mean(dim=1)
    return x.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1).to(x)
