"""The linearised model of an adapter as a Gaussian process: re-solved under its prior, its evidence, leaving one out.

With u = theta - theta_0 and the prior N(0, 1/delta), the linearised logits are f(u) = f* + C J (u - u*), and their
posterior mode is u = J^T a / delta, one number a per example and contrast (Rasmussen and Williams 2006, section 3.5).
The trained adapter is such a mode only if it was trained to the end under that very prior: *refitting* goes there
(the "GLM refit" of Immer et al. 2021). Everything is dense float64.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from laplace_lora.predictive import of_options

_STEPS, _TOLERANCE, _SHORTEST = 100, 1e-9, 1e-9


@dataclasses.dataclass(frozen=True)
class Fit:
    """The Gaussian of all logits at one prior.

    Attributes:
        evidence: Log marginal likelihood, in nats.
        mean: (N*, K) test logits.
        covariance: (N*, K, K) theirs.
        left_out: Training logits (N, K), each without its own example, and their covariance; None without a refit.
    """

    evidence: float
    mean: Tensor
    covariance: Tensor
    left_out: tuple[Tensor, Tensor] | None = None

    def probabilities(self, temperature: float = 1.0) -> Tensor:
        """Average the softmax over test logits."""
        return of_options(self.mean, self.covariance, temperature=temperature).probabilities


class DualModel:
    """What dual.py has collected of one adapter, with a prior centred on ``zero`` or on the adapter's ``start``."""

    def __init__(self, folder: Path, centre: str) -> None:
        """Read it."""
        tensors = load_file(folder / "dual.safetensors")
        self.contrasts = tensors["contrasts"]
        self.labels, self.test_labels = tensors["train.labels"].long(), tensors["test.labels"].long()
        self.trained, self.trained_test = tensors["train.mean"], tensors["test.mean"]
        self.offset = self.trained - tensors[f"train.move.{centre}"] @ self.contrasts.T
        self.test_offset = self.trained_test - tensors[f"test.move.{centre}"] @ self.contrasts.T
        self.kernel, self.cross, self.own = tensors["kernel"], tensors["cross"], tensors["own"]
        spectra = load_file(folder / "spectra.safetensors")
        self.squared_distance = float(spectra["squared_norms" if centre == "zero" else "squared_distances"].sum())

    def kernels(self, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return K (NM, NM), K_* (N* M, NM) and K_** (N*, M, M) at precisions of lora_A, lora_B and head, or of all."""
        inverse = (1.0 / precision).expand(len(self.kernel))
        return tuple(torch.einsum("g,g...->...", inverse, part) for part in (self.kernel, self.cross, self.own))  # type: ignore[return-value]

    def at_trained(self, precision: Tensor) -> Fit:
        """Return the posterior about the trained weights, as the library has it with ``structure="exact"``."""
        kernel, cross, own = self.kernels(precision)
        curved = Curved.of(self.trained, self.labels, self.contrasts)
        penalty = 0.5 * float(precision.max()) * self.squared_distance  # one precision for all
        evidence = curved.log_likelihood - penalty - 0.5 * curved.log_determinant(kernel)
        covariance = self.contrasts @ curved.covariance(kernel, cross, own) @ self.contrasts.T
        return Fit(evidence, self.trained_test, covariance)

    def refitted(self, precision: Tensor) -> Fit:
        """Return the posterior about the linearised model's own mode."""
        kernel, cross, own = self.kernels(precision)
        weights = self.mode(kernel)
        values = (kernel @ weights).view(len(self.labels), -1)
        curved = Curved.of(self.offset + values @ self.contrasts.T, self.labels, self.contrasts)
        penalty = 0.5 * float(weights @ kernel @ weights)
        evidence = curved.log_likelihood - penalty - 0.5 * curved.log_determinant(kernel)
        mean = self.test_offset + (cross @ weights).view(len(self.test_offset), -1) @ self.contrasts.T
        covariance = self.contrasts @ curved.covariance(kernel, cross, own) @ self.contrasts.T
        cavity, spread = curved.left_out(kernel, values)
        left_out = (self.offset + cavity @ self.contrasts.T, self.contrasts @ spread @ self.contrasts.T)
        return Fit(evidence, mean, covariance, left_out)

    def mode(self, kernel: Tensor, without: Sequence[int] = ()) -> Tensor:
        """Find the mode by damped Newton steps.

        Args:
            kernel: (NM, NM).
            without: Examples that are left out.

        Returns:
            (NM,) the weights a, equal to the likelihood's gradient: that is what being at the mode means, and checked.
        """
        kept = torch.ones(len(self.labels), dtype=torch.float64)
        kept[list(without)] = 0.0

        def value(weights: Tensor) -> float:
            logits = self.offset + (kernel @ weights).view(len(kept), -1) @ self.contrasts.T
            losses = torch.nn.functional.cross_entropy(logits, self.labels, reduction="none")
            return float(kept @ losses + 0.5 * weights @ kernel @ weights)

        weights = torch.zeros(len(kernel), dtype=torch.float64)
        reached = value(weights)
        for _ in range(_STEPS):
            values = (kernel @ weights).view(len(kept), -1)
            curved = Curved.of(self.offset + values @ self.contrasts.T, self.labels, self.contrasts, kept)
            if float((weights - curved.gradient.flatten()).abs().max()) < _TOLERANCE:
                return weights
            target = (torch.einsum("nij,nj->ni", curved.hessian, values) + curved.gradient).flatten()
            step = target - curved.solve(kernel, kernel @ target) - weights
            length = 1.0
            while length > _SHORTEST and value(weights + length * step) > reached + 1e-12 * abs(reached):
                length /= 2
            weights = weights + length * step
            reached = value(weights)
        raise SystemExit("the refit did not converge")


@dataclasses.dataclass(frozen=True)
class Curved:
    """The likelihood's derivatives by the contrasts of the training logits.

    Attributes:
        log_likelihood: In nats.
        gradient: (N, M) of the log likelihood.
        hessian: (N, M, M) of minus the log likelihood.
        root: (NM, NM) block diagonal, R R^T = hessian.
    """

    log_likelihood: float
    gradient: Tensor
    hessian: Tensor
    root: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, contrasts: Tensor, kept: Tensor | None = None) -> "Curved":
        """Differentiate."""
        weight = torch.ones(len(labels), dtype=torch.float64) if kept is None else kept
        p = logits.softmax(dim=1)
        likelihood = weight @ logits.log_softmax(dim=1)[torch.arange(len(labels)), labels]
        truth = torch.nn.functional.one_hot(labels, p.shape[1])
        hessian = contrasts.T @ (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) @ contrasts
        hessian = weight[:, None, None] * hessian
        values, vectors = torch.linalg.eigh(hessian)
        root = torch.block_diag(*(vectors * values.clamp(min=0.0).sqrt()[:, None, :]))
        return cls(float(likelihood), weight[:, None] * (truth - p) @ contrasts, hessian, root)

    def factor(self, kernel: Tensor) -> Tensor:
        """Return the Cholesky factor of I + R^T K R."""
        identity = torch.eye(len(kernel), dtype=torch.float64)
        return torch.linalg.cholesky(identity + self.root.T @ kernel @ self.root)

    def log_determinant(self, kernel: Tensor) -> float:
        """Return log det(I + R^T K R)."""
        return 2.0 * float(self.factor(kernel).diagonal().log().sum())

    def solve(self, kernel: Tensor, right: Tensor) -> Tensor:
        """Return R (I + R^T K R)^-1 R^T v."""
        return self.root @ torch.cholesky_solve(self.root.T @ right[:, None], self.factor(kernel))[:, 0]

    def covariance(self, kernel: Tensor, cross: Tensor, own: Tensor) -> Tensor:
        """Return the posterior's (N*, M, M)."""
        right = torch.linalg.solve_triangular(self.factor(kernel), self.root.T @ cross.T, upper=False)
        right = right.T.reshape(*own.shape[:2], -1)
        return own - right @ right.mT

    def left_out(self, kernel: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return every example's contrasts (N, M) without it, and their covariance (Vehtari et al. 2016, section 4)."""
        count, size = values.shape
        right = torch.linalg.solve_triangular(self.factor(kernel), self.root.T @ kernel, upper=False)
        blocks = (kernel - right.T @ right).view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        inverse = torch.linalg.inv(blocks)
        cavity = torch.linalg.inv(inverse - self.hessian)
        message = torch.einsum("nij,nj->ni", inverse - self.hessian, values) - self.gradient
        return torch.einsum("nij,nj->ni", cavity, message), cavity
