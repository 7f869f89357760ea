"""Random gradients, folded by any structure, and its posterior as dense matrices.

Everything here goes through the interface that all structures share, so that a new row of the table of structures
is tested without a new line of code.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from laplace_lora.config import FACTOR_RANKS, KroneckerApproximation, LaplaceConfig
from laplace_lora.curvature import Curvature, KroneckerCurvature
from laplace_lora.jacobians import SiteGradient
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior import Posterior
from laplace_lora.structures import STRUCTURES

# Two LoRA pairs, one of them with a bias at lora_B, and a head with a bias (the bias counts as a column).
SHAPES = (
    MatrixShape("one.lora_A", "one", 2, 4),
    MatrixShape("one.lora_B", "one", 3, 2),
    MatrixShape("two.lora_A", "two", 2, 3),
    MatrixShape("two.lora_B", "two", 4, 3),
    MatrixShape("head", "head", 3, 4),
)
WITH_BIAS = ("two.lora_B", "head")
GROUPINGS = {"shared": (0, 0, 0, 0, 0), "by module": (0, 0, 1, 1, 2), "one each": (0, 1, 2, 3, 4)}


def _cases() -> list[LaplaceConfig]:
    found = []
    for name, parts in STRUCTURES.items():
        if not issubclass(parts.curvature, KroneckerCurvature):
            found.append(LaplaceConfig(structure=name))
            if name in FACTOR_RANKS:  # fewer directions than the data have
                found.append(LaplaceConfig(structure=name, factor_rank=3))
            if name == "exact":
                found.append(LaplaceConfig(structure=name, rows_folder=tempfile.gettempdir()))
            continue
        rules = {"kron_svd": ("fitted",), "ekfac": ("fitted", "expand")}.get(name, get_args(KroneckerApproximation))
        if name != "kron_svd":
            found += [LaplaceConfig(structure=name, kfac=rule) for rule in rules]
        # The wide factor of every LoRA matrix sketched, and both of the head.
        found += [LaplaceConfig(structure=name, kfac=rule, factor_rank=1) for rule in rules]
    return found


# Every structure with every rule that it knows.
CASES = _cases()


def name_of(config: LaplaceConfig) -> str:
    """Name a case."""
    rank = "" if config.factor_rank is None else f"-rank{config.factor_rank}"
    place = "" if config.rows_folder is None else "-on-disk"
    return f"{config.structure}-{config.kfac}{rank}{place}"


def is_truncated(config: LaplaceConfig) -> bool:
    """Say whether what a curvature holds depends on batches and order, as a cut singular value decomposition does."""
    return config.structure == "kron_svd" and config.factor_rank is not None


def shapes_of(config: LaplaceConfig) -> tuple[MatrixShape, ...]:
    """Return the matrices that a structure covers: all, or the head alone."""
    return SHAPES[-1:] if STRUCTURES[config.structure].last_layer else SHAPES


def groups_of(config: LaplaceConfig, grouping: str) -> tuple[int, ...]:
    """Return the group of every matrix."""
    return (0,) if STRUCTURES[config.structure].last_layer else GROUPINGS[grouping]


def precision_of(groups: Sequence[int]) -> Tensor:
    """Return clearly different prior precisions, one per group."""
    return torch.tensor([0.4 * 2.5**group for group in range(1 + max(groups))], dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Data:
    """Synthetic training data: what a model pass would hand on, for all examples at once.

    Attributes:
        inputs: By matrix (N, T, in), without the bias's 1.
        gradients: By matrix (rows, N, T, out), 0 at padding.
        mask: (N, T) True at real tokens.
        weights: (N, rows) weights of the rows.
    """

    inputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    mask: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def take(self, positions: Sequence[int]) -> "Data":
        """Return the examples at some positions."""
        chosen = torch.tensor(list(positions), dtype=torch.long)
        return Data(
            {name: x[chosen] for name, x in self.inputs.items()},
            {name: g[:, chosen] for name, g in self.gradients.items()},
            self.mask[chosen],
            self.weights[chosen],
        )

    def to(self, dtype: torch.dtype) -> "Data":
        """Return the same numbers in another dtype."""
        return Data(
            {name: x.to(dtype) for name, x in self.inputs.items()},
            {name: g.to(dtype) for name, g in self.gradients.items()},
            self.mask,
            self.weights,
        )

    def without_curvature(self) -> "Data":
        """Return the same inputs with gradients of 0."""
        return dataclasses.replace(self, gradients={name: torch.zeros_like(g) for name, g in self.gradients.items()})


def random_data(examples: int = 7, tokens: int = 4, rows: int = 2, seed: int = 0) -> Data:
    """Draw inputs and gradients of ragged lengths."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, tokens + 1, (examples, 1), generator=generator)
    mask = torch.arange(tokens)[None] < lengths
    inputs, gradients = {}, {}
    for shape in SHAPES:
        # Inputs at padding are whatever the model left there; gradients are 0.
        inputs[shape.name] = normal(examples, tokens, shape.in_features - (shape.name in WITH_BIAS))
        gradients[shape.name] = normal(rows, examples, tokens, shape.out_features) * mask[None, :, :, None]
    weights = torch.rand(examples, rows, generator=generator, dtype=torch.float64) + 0.1
    return Data(inputs, gradients, mask, weights)


def fold(config: LaplaceConfig, data: Data, batch_size: int = 100) -> Curvature:
    """Fold data into a structure's curvature, pass by pass."""
    return merged(config, [data], batch_size)


def merged(config: LaplaceConfig, parts: Sequence[Data], batch_size: int = 100) -> Curvature:
    """Fold parts of the data by themselves, and merge what every pass ends with, in order."""
    curvature = one_pass(STRUCTURES[config.structure].curvature(shapes_of(config), config), parts[0], batch_size)
    for part in parts[1:]:
        curvature.merge(one_pass(STRUCTURES[config.structure].curvature(shapes_of(config), config), part, batch_size))
    while (after := curvature.next_pass()) is not None:
        before, curvature = curvature, one_pass(after, parts[0], batch_size)
        for part in parts[1:]:
            following = before.next_pass()
            assert following is not None
            curvature.merge(one_pass(following, part, batch_size))
    return curvature


def one_pass(curvature: Curvature, data: Data, batch_size: int = 100) -> Curvature:
    """Fold data batch by batch, row by row, matrix by matrix."""
    shapes = curvature.shapes
    for start in range(0, len(data), batch_size):
        batch = data.take(range(start, min(start + batch_size, len(data))))
        mask = None if bool(batch.mask.all()) else batch.mask
        for row in range(batch.weights.shape[1]):
            for index, shape in enumerate(shapes):
                x, g = batch.inputs[shape.name], batch.gradients[shape.name][row]
                gradient = SiteGradient(index, row, x, g, mask, shape.name in WITH_BIAS)
                curvature.update(gradient, batch.weights[:, row])
        curvature.end_batch()
    return curvature


def build(config: LaplaceConfig, curvature: Curvature, grouping: str = "by module") -> tuple[Posterior, Tensor]:
    """End a fold; return its posterior and prior precisions that suit its groups."""
    kind = STRUCTURES[config.structure].posterior
    posterior = kind.from_statistics(curvature.shapes, curvature.finalise(), curvature.dtype)
    groups = groups_of(config, grouping)
    posterior.assign_groups(groups)
    return posterior, precision_of(groups)


def posterior_of(config: LaplaceConfig, data: Data, grouping: str = "by module") -> tuple[Posterior, Tensor]:
    """Fold data and build the posterior."""
    return build(config, fold(config, data), grouping)


def functional(
    posterior: Posterior, precision: Tensor, jacobians: Sequence[Tensor], scales: Tensor | None = None
) -> Tensor:
    """Push Jacobians, one (B, M, out, in) tensor per matrix, through the accumulator: (S, B, M, M)."""
    accumulator = posterior.accumulator(precision, scales)
    for row in range(jacobians[0].shape[1]):
        for index, jacobian in enumerate(jacobians):
            accumulator.add(index, row, jacobian[:, row])
    return accumulator.covariance()


def split(flat: Tensor, shapes: Sequence[MatrixShape]) -> list[Tensor]:
    """Cut (..., P) weights into one (..., out, in) tensor per matrix."""
    parts = flat.split([shape.size for shape in shapes], dim=-1)
    return [
        part.unflatten(-1, (shape.out_features, shape.in_features)) for part, shape in zip(parts, shapes, strict=True)
    ]


def dense_covariance(posterior: Posterior, precision: Tensor) -> Tensor:
    """Return P^-1 (P, P): the covariance of every weight, each a one-hot Jacobian."""
    weights = sum(shape.size for shape in posterior.shapes)
    one_hot = torch.eye(weights, dtype=torch.float64)[None]
    return functional(posterior, precision, split(one_hot, posterior.shapes))[0, 0]


def dense_prior(posterior: Posterior, precision: Tensor) -> Tensor:
    """Return the diagonal of Delta, (P,)."""
    sizes = torch.tensor([shape.size for shape in posterior.shapes])
    return precision[list(posterior.groups)].repeat_interleave(sizes)


def dense_likelihood(posterior: Posterior, precision: Tensor) -> Tensor:
    """Return P - Delta."""
    return torch.linalg.inv(dense_covariance(posterior, precision)) - dense_prior(posterior, precision).diag()


def close(left: Tensor, right: Tensor, tolerance: float = 1e-9) -> None:
    """Assert equality relative to the largest expected entry."""
    assert left.shape == right.shape
    error = float((left - right).abs().max() / right.abs().max().clamp(min=1e-300))
    assert error <= tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"
