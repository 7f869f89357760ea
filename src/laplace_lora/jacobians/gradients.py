"""What a backward pass says about one weight matrix: every example's Jacobian, token by token.

For a linear layer ``y = W x`` the Jacobian of a logit of example n is ``J_n = sum_t g_nt x_nt^T``, g the gradient at
the layer's output.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from laplace_lora.readouts import Places


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of statistics for weights of a dtype: never below float32.

    Args:
        dtype: A floating-point dtype.

    Returns:
        float64 for float64, otherwise float32.
    """
    return torch.promote_types(dtype, torch.float32)


class MatrixGradient(abc.ABC):
    """Gradients of one combination of every example's logits at one weight matrix.

    Attributes:
        index: Position of the matrix among the sites of the pass.
        row: Number of the combination, counted from 0.
    """

    index: int
    row: int

    @abc.abstractmethod
    def jacobian(self) -> Tensor:
        """Return every example's Jacobian, (B, out, in) in the statistics dtype; the bias is the last column."""

    @abc.abstractmethod
    def tokens(self) -> tuple[Tensor, Tensor]:
        """Return inputs (B, T, in) and gradients (B, T, out) in the statistics dtype, both 0 at padding."""

    @property
    @abc.abstractmethod
    def token_mask(self) -> Tensor | None:
        """(B, T) True at real tokens, or None where all are."""

    @abc.abstractmethod
    def select(self, positions: Tensor) -> "MatrixGradient":
        """Return the same of some examples.

        Args:
            positions: (n,) their positions in the batch.
        """


@dataclasses.dataclass(frozen=True)
class SiteGradient(MatrixGradient):
    """Gradients of a matrix that acts in one place.

    Attributes:
        index: Position of the matrix among the sites of the pass.
        row: Number of the cotangent, counted from 0.
        inputs: (B, T, in) inputs of the layer, without the bias's 1; or (B, T) numbers of one-hot inputs.
        gradient: (B, T, out) gradient at the layer's output, 0 at padding.
        mask: (B, T) True at real tokens (of a head, those it is read at), or None where all are.
        has_bias: Whether the matrix has a bias as its last column.
        columns: Width of one-hot inputs; None for others.
    """

    index: int
    row: int
    inputs: Tensor
    gradient: Tensor
    mask: Tensor | None
    has_bias: bool
    columns: int | None = None

    @property
    def token_mask(self) -> Tensor | None:
        """See :attr:`MatrixGradient.token_mask`."""
        return self.mask

    def tokens(self) -> tuple[Tensor, Tensor]:
        """See :meth:`MatrixGradient.tokens`."""
        if self.columns is not None:
            dtype = statistics_dtype(self.gradient.dtype)
            x = torch.nn.functional.one_hot(self.inputs, self.columns).to(dtype)
        else:
            x = self.inputs.to(statistics_dtype(self.inputs.dtype))
        if self.has_bias:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=-1)
        if self.mask is not None:
            x = x.masked_fill(~self.mask[..., None], 0.0)
        return x, self.gradient.to(x.dtype)

    def jacobian(self) -> Tensor:
        """See :meth:`MatrixGradient.jacobian`."""
        if self.columns is not None:
            g = self.gradient.to(statistics_dtype(self.gradient.dtype))
            picked = self.inputs[..., None].expand_as(g)
            return g.new_zeros(len(g), self.columns, g.shape[2]).scatter_add_(1, picked, g).transpose(1, 2)
        x = self.inputs.to(statistics_dtype(self.inputs.dtype))
        g = self.gradient.to(x.dtype)
        # Both are the same sums; a product with few rows is the faster one (5 x for a lora_B of rank 8 on a CPU).
        if g.shape[2] > x.shape[2]:
            weight = torch.bmm(x.transpose(1, 2), g).transpose(1, 2)
        else:
            weight = torch.bmm(g.transpose(1, 2), x)
        if not self.has_bias:
            return weight
        return torch.cat([weight, g.sum(dim=1)[..., None]], dim=-1)

    def select(self, positions: Tensor) -> "SiteGradient":
        """See :meth:`MatrixGradient.select`."""
        return dataclasses.replace(
            self,
            inputs=self.inputs[positions],
            gradient=self.gradient[positions],
            mask=None if self.mask is None else self.mask[positions],
        )


@dataclasses.dataclass(frozen=True)
class SharedGradient(MatrixGradient):
    """Gradients of a matrix that acts in several places: the places' tokens one after the other.

    Attributes:
        parts: One gradient per place; of the same matrix and row.
    """

    parts: Sequence[SiteGradient]

    @property
    def index(self) -> int:  # type: ignore[override]
        """Position of the matrix."""
        return self.parts[0].index

    @property
    def row(self) -> int:  # type: ignore[override]
        """Number of the cotangent."""
        return self.parts[0].row

    @property
    def token_mask(self) -> Tensor | None:
        """See :attr:`MatrixGradient.token_mask`."""
        if all(part.mask is None for part in self.parts):
            return None
        masks = [p.gradient.new_ones(p.gradient.shape[:2]).bool() if p.mask is None else p.mask for p in self.parts]
        return torch.cat(masks, dim=1)

    def tokens(self) -> tuple[Tensor, Tensor]:
        """See :meth:`MatrixGradient.tokens`."""
        inputs, gradients = zip(*(part.tokens() for part in self.parts), strict=True)
        return torch.cat(inputs, dim=1), torch.cat(gradients, dim=1)

    def jacobian(self) -> Tensor:
        """See :meth:`MatrixGradient.jacobian`."""
        return sum((part.jacobian() for part in self.parts[1:]), self.parts[0].jacobian())

    def select(self, positions: Tensor) -> "SharedGradient":
        """See :meth:`MatrixGradient.select`."""
        return SharedGradient([part.select(positions) for part in self.parts])


class OptionGradients:
    """What one backward pass says of all options of every example, each of which has a row of its own.

    A combination ``sum_k c_k f_k`` has the Jacobian ``sum_k c_k J_k``: combining costs no pass.
    """

    def __init__(self, rows: MatrixGradient, places: Places, cotangents: Tensor | None) -> None:
        """Keep the rows' gradients.

        Args:
            rows: Of R rows.
            places: Where they belong.
            cotangents: (B, K, M) combinations; None for the options themselves.
        """
        self._rows = rows
        self.places = places
        self.cotangents = cotangents
        self.index = rows.index

    @functools.cached_property
    def jacobians(self) -> Tensor:
        """(B, K, out, in)."""
        return self.places.spread(self._rows.jacobian())

    @functools.cached_property
    def spread_tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """(B, K, T, in) inputs, (B, K, T, out) gradients and (B, K, T) True at real tokens."""
        inputs, gradients = self._rows.tokens()
        mask = self._rows.token_mask
        real = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device) if mask is None else mask
        return self.places.spread(inputs), self.places.spread(gradients), self.places.spread(real)

    def combinations(self) -> Sequence["OptionGradient"]:
        """Return one gradient per combination."""
        count = self.places.options if self.cotangents is None else self.cotangents.shape[-1]
        return [OptionGradient(self.index, row, self) for row in range(count)]

    def coefficients(self, row: int, like: Tensor) -> Tensor:
        """Return (B, K) coefficients of one combination.

        Args:
            row: Its number.
            like: Gives dtype and device.
        """
        if self.cotangents is not None:
            return self.cotangents[..., row].to(like)
        unit = like.new_zeros(self.places.examples, self.places.options)
        unit[:, row] = 1.0
        return unit


@dataclasses.dataclass(frozen=True)
class OptionGradient(MatrixGradient):
    """Gradients of one combination of an example's options.

    Attributes:
        index: Position of the matrix.
        row: Number of the combination.
        options: All options' gradients.
        chosen: Positions of the examples; all if None.
    """

    index: int
    row: int
    options: OptionGradients
    chosen: Tensor | None = None

    @property
    def token_mask(self) -> Tensor | None:
        """See :attr:`MatrixGradient.token_mask`: the options' tokens one after the other."""
        return self._picked(self.options.spread_tokens[2].flatten(1, 2))

    def tokens(self) -> tuple[Tensor, Tensor]:
        """See :meth:`MatrixGradient.tokens`: the options' tokens one after the other."""
        inputs, gradients, _ = self.options.spread_tokens
        weighted = gradients * self.options.coefficients(self.row, gradients)[:, :, None, None]
        return self._picked(inputs.flatten(1, 2)), self._picked(weighted.flatten(1, 2))

    def jacobian(self) -> Tensor:
        """See :meth:`MatrixGradient.jacobian`."""
        jacobians = self._picked(self.options.jacobians)
        if self.options.cotangents is None:
            return jacobians[:, self.row]
        coefficients = self._picked(self.options.coefficients(self.row, jacobians))
        return torch.einsum("bk,bkoi->boi", coefficients, jacobians)

    def select(self, positions: Tensor) -> "OptionGradient":
        """See :meth:`MatrixGradient.select`."""
        return dataclasses.replace(self, chosen=positions)

    def _picked(self, values: Tensor) -> Tensor:
        return values if self.chosen is None else values[self.chosen]
