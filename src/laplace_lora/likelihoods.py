"""Likelihoods: log p(y | f), and the rows R with R R^T = -d^2 log p / df^2 that make up the GGN.

Rows are given as unit directions times weights. A saturated softmax has tiny rows; their directions stay
well conditioned, survive a bfloat16 backward pass, and still say which way each example's logits can move.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.errors import LaplaceLoRAError, UnsupportedInputError


class Likelihood(Protocol):
    """What the curvature and the predictive need to know of p(y | f)."""

    shift_invariant: bool

    def contrasts(self, classes: int) -> Tensor:
        """Return an orthonormal basis (K, M) of the logit directions that matter."""

    def root(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit directions (B, K, M) and weights (B, M) with sum_m w^2 d d^T = Lambda."""

    def one_pass(self, logits: Tensor, fisher: str, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return one random direction (B, K, 1) and weight (B, 1) with E[w^2 d d^T] = Lambda."""

    def empirical(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the direction (B, K, 1) and weight (B, 1) of the data's own score d log p(y | f) / df."""

    def log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return log p(y_n | f_n), float64 of shape (B,)."""


def contrast_basis(classes: int) -> Tensor:
    """Return orthonormal contrasts: C with C^T C = I and C^T 1 = 0.

    Args:
        classes: K, at least 2.

    Returns:
        (K, K-1) float64, the normalised Helmert contrasts; for K = 2 the column is (-1, 1) / sqrt 2.
    """
    basis = torch.zeros(classes, classes - 1, dtype=torch.float64)
    for j in range(1, classes):
        scale = 1.0 / math.sqrt(j * (j + 1))
        basis[:j, j - 1] = -scale
        basis[j, j - 1] = j * scale
    return basis


class Categorical:
    """Softmax likelihood of one label among K: Lambda = diag(p) - p p^T, of rank K-1."""

    shift_invariant = True

    def contrasts(self, classes: int) -> Tensor:
        """Return the K-1 contrasts; a shift common to all logits changes no probability.

        Args:
            classes: K.

        Returns:
            (K, K-1) float64.
        """
        return contrast_basis(classes)

    def root(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns of R = diag(sqrt p) Q, Q the orthonormal complement of sqrt p.

        Q consists of the columns of the Householder reflection that takes sqrt p onto the likeliest
        class, except that class's own (DESIGN, section 2, item 2).

        Args:
            logits: (B, K).

        Returns:
            Unit directions (B, K, K-1), each summing to 0, and weights (B, K-1), float64.
        """
        log_p = torch.log_softmax(logits.double(), dim=-1)
        sqrt_p = torch.exp(0.5 * log_p)
        classes = sqrt_p.shape[1]
        top = log_p.argmax(dim=-1)
        others = _others(top, classes)
        # Reflection I - beta u u^T with u = sqrt p + e_top; its column j is e_j - beta u_j u.
        u = sqrt_p.scatter_add(1, top[:, None], torch.ones_like(sqrt_p[:, :1]))
        beta = 2.0 / (u * u).sum(dim=-1)
        u_others = u.gather(1, others)
        columns = -beta[:, None, None] * u[:, :, None] * u_others[:, None, :]
        identity = torch.eye(classes, dtype=torch.float64, device=logits.device)
        columns = columns + identity[others].transpose(1, 2)
        columns = sqrt_p[:, :, None] * columns
        weights = columns.norm(dim=1)
        # Where a class's probability underflows, its column tends to (e_j - e_top) / sqrt 2, of weight 0.
        limit = (identity[others] - identity[top][:, None, :]).transpose(1, 2) / math.sqrt(2.0)
        tiny = weights[:, None, :] < 1e-150
        directions = torch.where(tiny, limit, columns / weights.clamp(min=1e-150)[:, None, :])
        return directions, weights

    def one_pass(self, logits: Tensor, fisher: str, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return one random row whose outer product is Lambda in expectation.

        Args:
            logits: (B, K).
            fisher: ``rademacher``: R eps with random signs eps. ``mc``: e_y - p with y drawn from p.
            uniform: (B, K) numbers in [0, 1), independent of batch and order.

        Returns:
            Unit direction (B, K, 1) and weight (B, 1), float64.
        """
        directions, weights = self.root(logits)
        if fisher == "rademacher":
            signs = torch.where(uniform[:, : weights.shape[1]] < 0.5, -1.0, 1.0).to(weights)
            row = (directions * (weights * signs)[:, None, :]).sum(dim=-1)
        else:
            p = torch.softmax(logits.double(), dim=-1)
            drawn = (uniform[:, :1] > p.cumsum(dim=-1)).sum(dim=-1).clamp(max=p.shape[1] - 1)
            row = _label_row(p, drawn[:, None])
        return _unit(row, directions[..., 0])

    def empirical(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return e_y - p of the data's labels.

        Args:
            logits: (B, K).
            labels: (B,) class indices.

        Returns:
            Unit direction (B, K, 1) and weight (B, 1), float64.
        """
        self.log_likelihood(logits, labels)  # refuses what are no labels
        directions, _ = self.root(logits)
        return _unit(_label_row(torch.softmax(logits.double(), dim=-1), labels.long()[:, None]), directions[..., 0])

    def log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return log softmax(f)_y.

        Args:
            logits: (B, K).
            labels: (B,) integers in [0, K).

        Returns:
            (B,) float64, in nats.

        Raises:
            UnsupportedInputError: A label is not a class index.
        """
        classes = logits.shape[-1]
        integral = not labels.is_floating_point() and labels.dtype != torch.bool
        if labels.shape != logits.shape[:1] or not integral or bool(((labels < 0) | (labels >= classes)).any()):
            raise UnsupportedInputError(
                f"labels must be {logits.shape[0]} whole numbers from 0 to {classes - 1}, got "
                f"{labels.dtype} {tuple(labels.shape)} with values {labels.flatten()[:4].tolist()}...; check the label "
                "column."
            )
        chosen = torch.log_softmax(logits.double(), dim=-1).gather(1, labels.long()[:, None])[:, 0]
        if bool(torch.isneginf(logits.gather(1, labels.long()[:, None])).any()):
            raise UnsupportedInputError(
                "a label names an option that its example does not have; check the label column."
            )
        return chosen


class Gaussian:
    """K real outputs with independent Gaussian noise: Lambda = I / sigma^2."""

    shift_invariant = False

    def __init__(self, noise_variance: float) -> None:
        """Set the noise.

        Args:
            noise_variance: sigma^2, in squared units of the output.
        """
        self.noise_variance = noise_variance

    def contrasts(self, classes: int) -> Tensor:
        """Return the identity: every output counts.

        Args:
            classes: K.

        Returns:
            (K, K) float64.
        """
        return torch.eye(classes, dtype=torch.float64)

    def root(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the axes, each of weight 1 / sigma.

        Args:
            logits: (B, K) outputs.

        Returns:
            Unit directions (B, K, K) and weights (B, K), float64.
        """
        size, classes = logits.shape
        axes = torch.eye(classes, dtype=torch.float64, device=logits.device).expand(size, -1, -1)
        return axes, axes.new_full((size, classes), self.noise_variance**-0.5)

    def one_pass(self, logits: Tensor, fisher: str, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return one random row eps / sigma.

        Args:
            logits: (B, K) outputs.
            fisher: ``rademacher``: random signs. ``mc``: standard normal noise, the score of a sampled y.
            uniform: (B, K) numbers in [0, 1), independent of batch and order.

        Returns:
            Unit direction (B, K, 1) and weight (B, 1), float64.
        """
        if fisher == "rademacher":
            row = torch.where(uniform < 0.5, -1.0, 1.0).double()
        else:
            row = torch.special.ndtri(uniform.double().clamp(1e-12, 1 - 1e-12))
        row = row * self.noise_variance**-0.5
        return _unit(row, torch.zeros_like(row))

    def empirical(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (y - f) / sigma^2.

        Args:
            logits: (B, K) outputs.
            labels: Targets, as for :meth:`log_likelihood`.

        Returns:
            Unit direction (B, K, 1) and weight (B, 1), float64.
        """
        self.log_likelihood(logits, labels)  # refuses what are no targets
        row = (labels.reshape(logits.shape).double() - logits.double()) / self.noise_variance
        return _unit(row, torch.zeros_like(row))

    def log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the log density of the targets.

        Args:
            logits: (B, K) outputs.
            labels: (B, K) or, for K = 1, (B,) targets.

        Returns:
            (B,) float64, in nats.

        Raises:
            UnsupportedInputError: The targets' shape does not fit, or one is not finite.
        """
        if labels.numel() != logits.numel():
            raise UnsupportedInputError(
                f"targets have shape {tuple(labels.shape)} for outputs {tuple(logits.shape)}; give one per output."
            )
        if not bool(torch.isfinite(labels).all()):
            raise UnsupportedInputError("a target is NaN or infinite; remove its example, or fill the target in.")
        squared = (labels.reshape(logits.shape).double() - logits.double()).square().sum(dim=-1)
        constant = logits.shape[-1] * math.log(2.0 * math.pi * self.noise_variance)
        return -0.5 * (squared / self.noise_variance + constant)


class TokenScores:
    """Outputs that are log-probabilities of chosen tokens: their gradients are the GGN's rows already."""

    shift_invariant = False

    def contrasts(self, classes: int) -> Tensor:
        """Return the identity.

        Args:
            classes: K, 1.

        Returns:
            (K, K) float64.
        """
        return torch.eye(classes, dtype=torch.float64)

    def root(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output itself, of weight 1.

        Args:
            logits: (B, 1) log-probabilities.

        Returns:
            Unit directions (B, 1, 1) and weights (B, 1), float64.
        """
        ones = torch.ones(logits.shape, dtype=torch.float64, device=logits.device)
        return ones[..., None], ones

    def one_pass(self, logits: Tensor, fisher: str, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`root`: the tokens have been drawn already.

        Args:
            logits: (B, 1) log-probabilities.
            fisher: Not used.
            uniform: Not used.

        Returns:
            Unit direction (B, 1, 1) and weight (B, 1), float64.
        """
        return self.root(logits)

    def empirical(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return :meth:`root`: the tokens are the data's already.

        Args:
            logits: (B, 1) log-probabilities.
            labels: Not used.

        Returns:
            Unit direction (B, 1, 1) and weight (B, 1), float64.
        """
        return self.root(logits)

    def log_likelihood(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the log-probabilities themselves.

        Args:
            logits: (B, 1) log-probabilities of the labels.
            labels: Not used.

        Returns:
            (B,) float64, in nats.
        """
        return logits[:, 0].double()


def likelihood_of(kind: str, config: LaplaceConfig) -> Likelihood:
    """Return the likelihood of a readout.

    Args:
        kind: ``categorical``, ``gaussian``, ``tokens``, or ``configured``: as the settings say.
        config: The settings.

    Returns:
        The likelihood.

    Raises:
        LaplaceLoRAError: The settings ask for a Gaussian, and the readout's outputs are none.
    """
    if config.likelihood == "gaussian" and kind not in ("configured", "gaussian"):
        raise LaplaceLoRAError(
            "likelihood='gaussian' is for outputs that are real numbers, and this readout's are not; leave it out."
        )
    if kind == "tokens":
        return TokenScores()
    if kind == "gaussian" or config.likelihood == "gaussian":
        return Gaussian(config.noise_variance)
    return Categorical()


def _label_row(p: Tensor, labels: Tensor) -> Tensor:
    """Return e_y - p, (B, K), for labels (B, 1)."""
    # 1 - p of the label as a sum over the others: it would cancel where p is near 1.
    rest = p.scatter(1, labels, 0.0).sum(dim=-1, keepdim=True)
    return (-p).scatter(1, labels, rest)


def _unit(row: Tensor, fallback: Tensor) -> tuple[Tensor, Tensor]:
    """Split rows (B, K) into unit directions (B, K, 1) and weights (B, 1); rows of 0 take the fallback's direction."""
    weight = row.norm(dim=-1, keepdim=True)
    return torch.where(weight < 1e-150, fallback, row / weight.clamp(min=1e-150))[..., None], weight


def _others(top: Tensor, classes: int) -> Tensor:
    """Return, for every row, the class indices other than ``top`` in ascending order: (B, K-1)."""
    index = torch.arange(classes - 1, device=top.device).expand(top.shape[0], -1)
    return index + (index >= top[:, None]).long()
