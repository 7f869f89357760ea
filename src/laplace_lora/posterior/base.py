"""What every Gaussian over adapter weights can do, whatever its structure.

The posterior is N(theta*, P^-1) with P = likelihood part + Delta. A structure stores the likelihood part;
the prior precisions Delta = diag(delta_l), one per group of weight matrices, are given with every call, so that no
model pass is repeated when they change. ``scales`` evaluates several multiples of Delta at once.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior.spectrum import Grid


class CovarianceAccumulator(abc.ABC):
    """Collects a batch's Jacobians, matrix by matrix, and ends with the covariance of their outputs."""

    @abc.abstractmethod
    def add(self, index: int, row: int, jacobian: Tensor) -> None:
        """Take one Jacobian.

        Args:
            index: Position of the weight matrix.
            row: Which combination of the logits, counted from 0.
            jacobian: (B, out, in).
        """

    @abc.abstractmethod
    def covariance(self) -> Tensor:
        """Return J (P + ...)^-1 J^T for every scale.

        Returns:
            (S, B, M, M) float64, in squared logits; positive semi-definite up to rounding.
        """

    @property
    def nbytes(self) -> int:
        """Bytes held of the batch until its covariance is asked for, where batches can wait for others; else 0."""
        return 0

    @classmethod
    def covariances(cls, batches: Sequence["CovarianceAccumulator"]) -> list[Tensor]:
        """End several batches together, which can cost less than one by one.

        Args:
            batches: Accumulators of this class, made alike.

        Returns:
            What :meth:`covariance` returns, of each.
        """
        return [batch.covariance() for batch in batches]


class Posterior(abc.ABC):
    """A Gaussian over all weight matrices, without its prior.

    Weight matrices with a common prior precision form a group; ``groups`` names each matrix's. Precisions
    are float64 tensors of one positive number per group, in 1 / weight^2.

    Attributes:
        spectra: How the names of stored eigenvalues end.
        streams: Whether its state can stay in a file that is mapped into memory.
        joint: Whether it sees curvature between matrices, so that its effective parameters are at most N (K-1).
    """

    spectra: ClassVar[tuple[str, ...]] = ()
    streams: ClassVar[bool] = False
    joint: ClassVar[bool] = False

    def __init__(self, shapes: Sequence[MatrixShape]) -> None:
        """Keep the shapes of the weight matrices.

        Args:
            shapes: One per matrix, in the order in which matrices are indexed.
        """
        self.shapes = tuple(shapes)
        self.groups = tuple(range(len(self.shapes)))

    def assign_groups(self, groups: Sequence[int]) -> None:
        """Say which matrices share a prior precision; at first each has its own.

        Args:
            groups: For every matrix the index of its group, counted from 0.
        """
        assert len(groups) == len(self.shapes)
        self.groups = tuple(groups)

    def matrix_precisions(self, precision: Tensor) -> list[float]:
        """Spread precisions over the matrices.

        Args:
            precision: One per group.

        Returns:
            One per matrix.
        """
        values = precision.tolist()
        return [values[group] for group in self.groups]

    @classmethod
    @abc.abstractmethod
    def from_statistics(
        cls, shapes: Sequence[MatrixShape], statistics: Mapping[str, Sequence[Tensor]], dtype: torch.dtype
    ) -> "Posterior":
        """Build the Gaussian from what a curvature's fold ended with.

        Args:
            shapes: One per matrix.
            statistics: Named lists of one tensor per matrix; which, says the structure's curvature.
            dtype: dtype of the Jacobians to come.

        Returns:
            The posterior.
        """

    @abc.abstractmethod
    def accumulator(self, precision: Tensor, scales: Tensor | None = None) -> CovarianceAccumulator:
        """Start collecting a batch.

        Args:
            precision: Prior precision of each group.
            scales: (S,) multiples of ``precision`` to evaluate; one, 1.0, if not given.

        Returns:
            An empty accumulator.
        """

    def shared_bytes(self, limit: int) -> int:
        """Say how many bytes of Jacobians batches are to hold before they are ended together.

        Args:
            limit: Most bytes that the posterior may take.

        Returns:
            0 where nothing is won by waiting.
        """
        return 0

    def storage_warning(self, precision: Tensor) -> str | None:
        """Say so where the dtype that the state is kept in is too coarse for a prior.

        Args:
            precision: Prior precision of each group.

        Returns:
            One sentence and the remedy, or None where all is well.
        """
        return None

    @property
    def has_spectrum(self) -> bool:
        """Whether eigenvalues do not depend on the prior, so that one grid serves all priors."""
        return True

    @abc.abstractmethod
    def grid(self) -> Grid:
        """Return nodes for the eigenvalues of the likelihood's part.

        Returns:
            The grid; the same for every batch.
        """

    @abc.abstractmethod
    def gather(self, jacobians: Mapping[int, Tensor], grid: Grid) -> Tensor:
        """Split a batch's contributions by eigenvalue; see :mod:`laplace_lora.posterior.spectrum`.

        Args:
            jacobians: (B, M, out, in) of every weight matrix.
            grid: From :meth:`grid`.

        Returns:
            (G, n, B, M, M) float64, one table for every prior group.
        """

    def spectral_accumulator(self, grid: Grid) -> CovarianceAccumulator:
        """Start collecting a batch for every prior at once.

        Args:
            grid: From :meth:`grid`.

        Returns:
            An empty accumulator. It ends with (G n, B, M, M) contributions in the place of covariances.
        """
        return _SpectralAccumulator(self, grid)

    @abc.abstractmethod
    def log_determinant(self, precision: Tensor) -> float:
        """Return log det(P Delta^-1), at least 0.

        Args:
            precision: Prior precision of each group.

        Returns:
            The Occam term of the evidence, in nats (twice its weight there).
        """

    @abc.abstractmethod
    def effective_parameters(self, precision: Tensor) -> Tensor:
        """Return gamma_g = (number of weights) - delta_g tr (P^-1)_gg (MacKay 1992).

        Args:
            precision: Prior precision of each group.

        Returns:
            One float64 number per group, from 0 to its number of weights.
        """

    @abc.abstractmethod
    def sample(self, precision: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
        """Draw deviations theta - theta* from N(0, P^-1).

        Args:
            precision: Prior precision of each group.
            count: How many.
            generator: Source of randomness, on the CPU.

        Returns:
            One (count, out, in) tensor per matrix.
        """

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, for a safetensors file."""

    @classmethod
    @abc.abstractmethod
    def from_tensors(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "Posterior":
        """Rebuild a posterior from :meth:`tensors`.

        Args:
            shapes: One per matrix.
            tensors: What :meth:`tensors` returned.

        Returns:
            The posterior.
        """

    @classmethod
    def from_mapped(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> "Posterior":
        """Rebuild a posterior that :attr:`streams` from tensors in a file that is mapped into memory.

        Args:
            shapes: One per matrix.
            tensors: What :meth:`tensors` returned, on the host.

        Returns:
            The posterior.
        """
        return cls.from_tensors(shapes, tensors)

    @classmethod
    @abc.abstractmethod
    def stored(cls, shapes: Sequence[MatrixShape], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Say what :meth:`tensors` holds, so that a file can be checked before it is used.

        Args:
            shapes: One per matrix.
            tensors: What a file holds, of any names and shapes. It says what shapes leave open, as numbers of rows
                and directions.

        Returns:
            Names to shapes. What :attr:`spectra` ends in holds float64 numbers that are not negative.
        """

    def without_tail(self) -> "Posterior":
        """Return the same without the curvature that was only guessed at; see :mod:`laplace_lora.curvature.sketch`.

        Returns:
            A posterior that knows no more than the data's curvature holds; itself where nothing was guessed.
        """
        return self

    @property
    def device(self) -> torch.device:
        """Where the state is, and where Jacobians have to be."""
        return next(iter(self.tensors().values())).device

    @property
    def nbytes(self) -> int:
        """Bytes of the stored state."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())


class KeptRows(CovarianceAccumulator):
    """Keeps the Jacobians until all rows are there: 4 B M P bytes for B examples, M rows and P weights in float32."""

    def __init__(self) -> None:
        """Start empty."""
        self._rows: dict[int, list[Tensor]] = {}

    def add(self, index: int, row: int, jacobian: Tensor) -> None:
        """See :meth:`CovarianceAccumulator.add`."""
        rows = self._rows.setdefault(index, [])
        assert row == len(rows), "rows come in order"
        rows.append(jacobian)


class _SpectralAccumulator(KeptRows):
    def __init__(self, posterior: Posterior, grid: Grid) -> None:
        super().__init__()
        self.posterior, self.grid = posterior, grid

    def covariance(self) -> Tensor:
        stacked = {index: stacked_rows(rows) for index, rows in self._rows.items()}
        return self.posterior.gather(stacked, self.grid).flatten(end_dim=1)


def stacked_rows(rows: Sequence[Tensor]) -> Tensor:
    """Stack Jacobians, in memory as they are: those of a lora_B lie transposed.

    Args:
        rows: M tensors (B, out, in).

    Returns:
        (B, M, out, in).
    """
    if rows[0].stride(-1) == 1:
        return torch.stack(tuple(rows), dim=1)
    return torch.stack([row.mT for row in rows], dim=1).mT


def standard_normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers that do not depend on the device they are moved to.

    Args:
        shape: Shape of the result.
        like: Gives dtype and device.
        generator: A CPU generator.

    Returns:
        The numbers.
    """
    return torch.randn(tuple(shape), dtype=like.dtype, generator=generator).to(like.device)
