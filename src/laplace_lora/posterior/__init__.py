"""Gaussians over adapter weights: one file per structure."""

from laplace_lora.posterior.base import CovarianceAccumulator, Posterior
from laplace_lora.posterior.diagonal import DiagonalPosterior
from laplace_lora.posterior.eigenvalue_corrected import EigenvalueCorrectedPosterior
from laplace_lora.posterior.exact import ExactPosterior
from laplace_lora.posterior.isotropic import IsotropicPosterior
from laplace_lora.posterior.kron_low_rank import KroneckerLowRankPosterior
from laplace_lora.posterior.kronecker import KroneckerPosterior
from laplace_lora.posterior.low_rank import LowRankPosterior
from laplace_lora.posterior.spectrum import Grid, Spectrum

__all__ = [
    "CovarianceAccumulator",
    "DiagonalPosterior",
    "EigenvalueCorrectedPosterior",
    "ExactPosterior",
    "Grid",
    "IsotropicPosterior",
    "KroneckerLowRankPosterior",
    "KroneckerPosterior",
    "LowRankPosterior",
    "Posterior",
    "Spectrum",
]
