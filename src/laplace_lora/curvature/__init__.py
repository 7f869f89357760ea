"""One pass over the data, folded into sufficient statistics: start, update, merge, finalise."""

from laplace_lora.curvature.base import Curvature
from laplace_lora.curvature.diagonal import DiagonalCurvature
from laplace_lora.curvature.eigenvalue_corrected import EigenbasisCurvature
from laplace_lora.curvature.fitting import backward_passes, fit_curvature, head_only
from laplace_lora.curvature.further_passes import fit_further, require_rereadable
from laplace_lora.curvature.hashing import digest_numbers, input_digests
from laplace_lora.curvature.isotropic import IsotropicCurvature
from laplace_lora.curvature.kron_low_rank import KroneckerLowRankCurvature
from laplace_lora.curvature.kronecker import KroneckerCurvature, TruncatedKroneckerCurvature
from laplace_lora.curvature.low_rank import LowRankCurvature
from laplace_lora.curvature.rows import RowCurvature
from laplace_lora.curvature.tally import FitResult, row_numbers
from laplace_lora.curvature.train_check import TrainCheck, TrainCheckExamples

__all__ = [
    "Curvature",
    "DiagonalCurvature",
    "EigenbasisCurvature",
    "FitResult",
    "IsotropicCurvature",
    "KroneckerCurvature",
    "KroneckerLowRankCurvature",
    "LowRankCurvature",
    "RowCurvature",
    "TrainCheck",
    "TrainCheckExamples",
    "TruncatedKroneckerCurvature",
    "backward_passes",
    "digest_numbers",
    "fit_curvature",
    "fit_further",
    "head_only",
    "input_digests",
    "require_rereadable",
    "row_numbers",
]
