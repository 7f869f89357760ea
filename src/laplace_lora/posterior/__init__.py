"""Gaussians over adapter weights: one file per structure."""

from laplace_lora.posterior.base import CovarianceAccumulator, Posterior
from laplace_lora.posterior.diagonal import DiagonalPosterior
from laplace_lora.posterior.exact import ExactPosterior
from laplace_lora.posterior.kronecker import KroneckerPosterior

__all__ = [
    "CovarianceAccumulator",
    "DiagonalPosterior",
    "ExactPosterior",
    "KroneckerPosterior",
    "Posterior",
]
