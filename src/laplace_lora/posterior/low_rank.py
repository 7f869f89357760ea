"""Low rank plus diagonal over all weight matrices jointly: P = W W^T + D + Delta."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.diagonal import DiagonalPosterior
from laplace_lora.posterior.low_rank_plus import LowRankPlusPosterior, Weights


class LowRankPosterior(LowRankPlusPosterior):
    """The GGN's posterior by m directions of all matrices together, and the rest of its diagonal.

    Exact where the GGN's rank, at most N (K-1), is no larger than m. Bytes: 4 m + 8 for every weight (8 m + 8 with
    float64 models).
    """

    structure = "low_rank"
    spectra = (".diagonal",)

    def __init__(self, shapes: Sequence[MatrixShape], factors: Sequence[Tensor], diagonals: Sequence[Tensor]) -> None:
        """Keep both parts.

        Args:
            shapes: One per matrix.
            factors: Per matrix its rows of W, (out * in, m).
            diagonals: Per matrix D, (out * in,), non-negative, float64.
        """
        squares = [d.view(s.out_features, s.in_features) for d, s in zip(diagonals, shapes, strict=True)]
        super().__init__(shapes, factors, DiagonalPosterior(shapes, squares))
        self.diagonals = list(diagonals)

    @classmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "LowRankPosterior":
        """See :meth:`Posterior.from_statistics`: ``factor`` holds rows of W, ``diagonal`` D."""
        return cls(shapes, statistics["factor"], statistics["diagonal"])

    def gram(self, weights: Mapping[int, Weights]) -> Tensor:
        """See :meth:`LowRankPlusPosterior.gram`: a few weights at a time, which all directions share."""
        size = self.factors[0].shape[1]
        total = torch.zeros(size, size, dtype=torch.float64, device=self.device)
        for index, (weight,) in weights.items():
            flat = weight.flatten()
            for columns, rows in self.blocks(index):
                total += rows.mT @ (flat[columns, None] * rows)
        return total

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Posterior.tensors`."""
        return self.named_factors() | {
            f"{s.name}.diagonal": d for s, d in zip(self.shapes, self.diagonals, strict=True)
        }

    @classmethod
    def stored(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See :meth:`Posterior.stored`."""
        return cls.stored_factors(shapes, tensors) | {f"{shape.name}.diagonal": (shape.size,) for shape in shapes}

    @classmethod
    def from_tensors(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "LowRankPosterior":
        """See :meth:`Posterior.from_tensors`."""
        factors, diagonals = ([tensors[f"{s.name}.{kind}"] for s in shapes] for kind in ("factor", "diagonal"))
        return cls(shapes, factors, diagonals)
