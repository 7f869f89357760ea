"""The table of posterior structures: which fold collects what, and which Gaussian is built from it."""

import dataclasses

from laplace_lora.config import Structure
from laplace_lora.curvature import Curvature, DiagonalCurvature, KroneckerCurvature, RowCurvature
from laplace_lora.posterior import DiagonalPosterior, ExactPosterior, KroneckerPosterior, Posterior


@dataclasses.dataclass(frozen=True)
class StructureParts:
    """What makes up one structure.

    Attributes:
        curvature: The fold over the training data.
        posterior: The Gaussian built from what the fold ends with.
        last_layer: Whether it covers the head alone, which takes no backward pass.
    """

    curvature: type[Curvature]
    posterior: type[Posterior]
    last_layer: bool = False


STRUCTURES: dict[Structure, StructureParts] = {
    "kron": StructureParts(KroneckerCurvature, KroneckerPosterior),
    "diag": StructureParts(DiagonalCurvature, DiagonalPosterior),
    "exact": StructureParts(RowCurvature, ExactPosterior),
    "last_layer": StructureParts(KroneckerCurvature, KroneckerPosterior, last_layer=True),
}
