"""Matrices with known spectra, whole and sketched posteriors of them, and dense oracles in numpy."""

import numpy as np
import torch
from torch import Tensor

from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature import KroneckerCurvature
from laplace_lora.curvature.sketch import SketchedFactor
from laplace_lora.jacobians import SiteGradient
from laplace_lora.matrices import MatrixShape
from laplace_lora.posterior import KroneckerPosterior

# Eigenvalues of a wide factor: name -> function of the eigenvalue's number, from 1.
SPECTRA = {
    "fast: exp(-i / 3)": lambda i: np.exp(-i / 3.0),
    "slow: 1 / i": lambda i: 1.0 / i,
    "very slow: 1 / sqrt(i)": lambda i: i**-0.5,
    "flat": lambda i: np.ones_like(i),
    "step": lambda i: np.where(i <= 12, 1.0, 1e-3),
}


def rows_with(spectrum: str, width: int, count: int, seed: int = 0) -> Tensor:
    """Draw X (count, width) with X^T X of the eigenvalues named, in a random basis, traces 1."""
    generator = np.random.default_rng(seed)
    size = min(width, count)
    values = SPECTRA[spectrum](np.arange(1.0, size + 1.0))
    left = np.linalg.qr(generator.normal(size=(count, size)))[0]
    right = np.linalg.qr(generator.normal(size=(width, size)))[0]
    return torch.from_numpy(left * np.sqrt(values / values.sum()) @ right.T)


def oracle_sketch(matrix: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """Return the Nystrom approximation by its definition, with a pseudo-inverse."""
    products = matrix @ omega
    return products @ np.linalg.pinv(omega.T @ products, rcond=1e-12, hermitian=True) @ products.T


def as_matrix(spectrum: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return V diag(values) V^T + tail (I - V V^T)."""
    values, vectors, tail = spectrum
    projection = vectors @ vectors.mT
    return vectors * values @ vectors.mT + tail * (torch.eye(len(vectors), dtype=vectors.dtype) - projection)


def sketch_of(rows: Tensor, rank: int) -> SketchedFactor:
    """Sketch X^T X."""
    factor = SketchedFactor(rows.shape[1], rank)
    factor.add(rows[:, :, None])
    return factor


def posterior_of_rows(rows: Tensor, out_features: int, factor_rank: int, flip: bool = False) -> KroneckerPosterior:
    """Fold one Jacobian per group of ``out_features`` rows: (out, in), or, flipped, (in, out)."""
    jacobians = rows.unflatten(0, (-1, out_features))
    width = rows.shape[1]
    shape = MatrixShape("m", "m", *((width, out_features) if flip else (out_features, width)))
    curvature = KroneckerCurvature((shape,), LaplaceConfig(factor_rank=factor_rank))
    for jacobian in jacobians:
        # With one-hot inputs a token's gradient is a column of the Jacobian.
        j = jacobian.T if flip else jacobian
        eye = torch.eye(j.shape[1], dtype=j.dtype)
        gradient = SiteGradient(0, 0, eye[None], j.T[None], None, False)
        curvature.update(gradient, torch.ones(1, dtype=torch.float64))
    curvature.end_batch()
    return KroneckerPosterior.from_statistics((shape,), curvature.finalise(), curvature.dtype)


def variance(posterior: KroneckerPosterior, jacobian: Tensor, delta: float) -> Tensor:
    """Return the variance of one output per example of (B, out, in) Jacobians."""
    accumulator = posterior.accumulator(torch.tensor([delta], dtype=torch.float64))
    accumulator.add(0, 0, jacobian)
    return accumulator.covariance()[0, :, 0, 0]
