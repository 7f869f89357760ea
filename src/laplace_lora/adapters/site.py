"""A site: one trained weight matrix, and the modules through which it acts."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Use(Protocol):
    """How a weight matrix acts in one module.

    The gradient ``G`` at the module's output, and what :meth:`keep` keeps of its forward call, give the Jacobian
    token by token, ``J = sum_t g_t x_t^T``.

    Attributes:
        hooked: The module whose output's gradient is taken.
    """

    @property
    def hooked(self) -> nn.Module:
        """The module whose output's gradient is taken."""

    def counts(self, args: Sequence[Any]) -> bool:
        """Say whether a call of the module is part of the model's computation.

        Args:
            args: The call's positional arguments.

        Returns:
            False for calls that compute something else, as DoRA's norms.
        """

    def keep(self, args: Sequence[Any], output: Tensor) -> Tensor:
        """Choose what the backward pass needs of a forward call.

        Args:
            args: The call's positional arguments.
            output: Its result.

        Returns:
            One tensor.
        """

    def tokens(self, kept: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and g.

        Args:
            kept: What :meth:`keep` chose.
            gradient: (B, T, n) or (B, n) gradient at the output.

        Returns:
            Inputs (B, T, in), or (B, T) whole numbers that stand for one-hot inputs; and gradients (B, T, out).
            Without T for modules that see one vector per example.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One weight matrix of the posterior, (out, in); with a bias, the bias is its last column.

    A vector (a bias by itself, a magnitude) is a matrix of one column, which acts on the constant 1.

    Attributes:
        name: Unique name, that of the parameter's module without the adapter's name.
        module: Qualified name of the adapted module; lora_A and lora_B of one module share it.
        uses: Where it acts; several for weights that are tied.
        weight: The parameter, (out, in) or (out,).
        bias: The bias parameter, (out,), or None.
        trained_in_full: Whether the layer was trained beside the adapter (PEFT ``modules_to_save``).
        at_head: Whether it acts in the model's output embeddings.
        rows: Those rows of the parameter that the posterior covers; all if None.
        one_hot: Whether its inputs are one-hot: an embedding's matrix.
    """

    name: str
    module: str
    uses: tuple[Use, ...]
    weight: nn.Parameter
    bias: nn.Parameter | None = None
    trained_in_full: bool = False
    at_head: bool = False
    rows: Tensor | None = None
    one_hot: bool = False

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return self.weight.shape[0] if self.rows is None else len(self.rows)

    @property
    def in_features(self) -> int:
        """Columns of the matrix, the bias counted as one more."""
        columns = self.weight.shape[1] if self.weight.dim() > 1 else 1
        return columns + (self.bias is not None)

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def weights(self) -> Tensor:
        """Return the trained values.

        Returns:
            A detached (out_features, in_features) matrix, the bias as its last column, in the
            parameter's dtype.
        """
        weight = self._chosen(_as_matrix(self.weight.detach()))
        if self.bias is None:
            return weight
        return torch.cat([weight, self._chosen(self.bias.detach())[:, None]], dim=1)

    def moved(self, deviation: Tensor) -> dict[nn.Parameter, Tensor]:
        """Return the parameters' values after a step.

        Args:
            deviation: (out_features, in_features).

        Returns:
            For every parameter a new tensor of its shape, in its dtype but never below float32.
        """
        columns = [deviation] if self.bias is None else [deviation[:, :-1], deviation[:, -1]]
        values = {}
        for parameter, column in zip(self.parameters, columns, strict=True):
            start = parameter.detach().to(deviation.dtype)
            # A posterior whose rows are in a file lives on the host.
            step = column.to(start.device).reshape(-1, *start.shape[1:])
            value = start + step if self.rows is None else start.index_add(0, self.rows.to(start.device), step)
            values[parameter] = value.to(torch.promote_types(parameter.dtype, torch.float32))
        return values

    def _chosen(self, values: Tensor) -> Tensor:
        return values if self.rows is None else values[self.rows.to(values.device)]


@dataclasses.dataclass(frozen=True, eq=False)
class LinearUse:
    """A linear layer ``y = W x``, or ``y = [W b] [x; 1]``.

    Attributes:
        hooked: The layer.
    """

    hooked: nn.Module

    def counts(self, args: Sequence[Any]) -> bool:
        """See :meth:`Use.counts`."""
        return True

    def keep(self, args: Sequence[Any], output: Tensor) -> Tensor:
        """See :meth:`Use.keep`: the layer's input."""
        return args[0]

    def tokens(self, kept: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Use.tokens`."""
        return kept, gradient


@dataclasses.dataclass(frozen=True, eq=False)
class ConstantUse(LinearUse):
    """A vector that is added to a module's output, ``y = ... + b``: a linear layer of the constant 1.

    Attributes:
        hooked: The module.
    """

    def keep(self, args: Sequence[Any], output: Tensor) -> Tensor:
        """See :meth:`Use.keep`: nothing but the shape."""
        return output.new_ones(()).expand(*output.shape[:-1], 1)


@dataclasses.dataclass(frozen=True, eq=False)
class TransposedUse:
    """A matrix that is used the other way round elsewhere: ``J^T = sum_t x_t g_t^T``.

    Attributes:
        use: How the transposed matrix acts.
    """

    use: Use

    @property
    def hooked(self) -> nn.Module:
        """The module whose output's gradient is taken."""
        return self.use.hooked

    def counts(self, args: Sequence[Any]) -> bool:
        """See :meth:`Use.counts`."""
        return self.use.counts(args)

    def keep(self, args: Sequence[Any], output: Tensor) -> Tensor:
        """See :meth:`Use.keep`."""
        return self.use.keep(args, output)

    def tokens(self, kept: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Use.tokens`: with the parts of x and g exchanged."""
        inputs, gradients = self.use.tokens(kept, gradient)
        return gradients, inputs


def with_rows(site: Site, rows: Tensor) -> Site:
    """Restrict a site to some of its rows.

    Args:
        site: A site at the model's output embeddings.
        rows: Indices of outputs.

    Returns:
        The site with those rows alone.
    """
    return dataclasses.replace(site, rows=rows)


def _as_matrix(values: Tensor) -> Tensor:
    return values if values.dim() > 1 else values[:, None]
