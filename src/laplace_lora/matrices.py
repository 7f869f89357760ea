"""The weight matrices of a posterior as the mathematics sees them: names, sizes, and shared priors."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from laplace_lora.config import PriorGroups
from laplace_lora.errors import LaplaceLoRAError


@dataclasses.dataclass(frozen=True)
class MatrixShape:
    """Name and size of one weight matrix of the posterior.

    Attributes:
        name: The site's name.
        module: Name of the adapted module it belongs to.
        out_features: Rows.
        in_features: Columns, a bias counted as one more.
        trained_in_full: Whether it is a layer trained in full, not half of a LoRA pair.
    """

    name: str
    module: str
    out_features: int
    in_features: int
    trained_in_full: bool = False

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features

    @property
    def role(self) -> str:
        """``head`` of a layer trained in full, else which part of an adapter: ``lora_A``, ``lora_B``, or its own name.

        The two matrices of an adapted embedding are called as those of a linear layer.
        """
        return "head" if self.trained_in_full else self.name.rpartition(".")[2].replace("lora_embedding_", "lora_")


@dataclasses.dataclass(frozen=True)
class Groups:
    """Prior groups: which weight matrices share one prior precision.

    Attributes:
        names: One per group, in the order of the matrices.
        index: For every matrix the position of its group.
    """

    names: tuple[str, ...]
    index: tuple[int, ...]

    @classmethod
    def of(cls, shapes: Sequence[MatrixShape], kind: PriorGroups) -> "Groups":
        """Partition matrices.

        Args:
            shapes: The weight matrices.
            kind: ``global`` (one group), ``role`` (one per part of the adapter, and one for layers trained in full),
                ``module`` (one per adapted module) or ``matrix``.

        Returns:
            The groups, named after the role, module or matrix (``global`` for the single one).
        """
        keys = {
            "global": ["global"] * len(shapes),
            "role": [shape.role for shape in shapes],
            "module": [shape.module for shape in shapes],
            "matrix": [shape.name for shape in shapes],
        }[kind]
        names = tuple(dict.fromkeys(keys))
        return cls(names, tuple(names.index(key) for key in keys))

    def precisions(self, value: float | Mapping[str, float]) -> Tensor:
        """Turn a setting into one precision per group.

        Args:
            value: One number for all groups, or one per group name.

        Returns:
            (G,) float64.

        Raises:
            LaplaceLoRAError: The names are not exactly the groups'.
        """
        if not isinstance(value, Mapping):
            return torch.full((len(self.names),), float(value), dtype=torch.float64)
        missing = [name for name in self.names if name not in value]
        unknown = [name for name in value if name not in self.names]
        if missing or unknown:
            raise LaplaceLoRAError(
                f"prior_precision misses {', '.join(missing) or 'no group'} and names {', '.join(unknown) or 'none'} "
                f"that are no groups; give exactly: {', '.join(self.names)}."
            )
        return torch.tensor([float(value[name]) for name in self.names], dtype=torch.float64)
