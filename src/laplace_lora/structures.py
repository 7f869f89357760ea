"""The table of posterior structures: which fold collects what, and which Gaussian is built from it."""

import dataclasses

from laplace_lora.adapters import AdapterSites
from laplace_lora.config import LaplaceConfig, Structure
from laplace_lora.curvature import Curvature, DiagonalCurvature, KroneckerCurvature, RowCurvature
from laplace_lora.errors import LaplaceLoRAError
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


def choose_sites(adapter: AdapterSites, config: LaplaceConfig) -> AdapterSites:
    """Keep all sites, or for ``last_layer`` the last fully trained one; the rest is held at MAP.

    Args:
        adapter: All sites.
        config: Says the structure.

    Returns:
        The sites that the posterior covers.

    Raises:
        LaplaceLoRAError: ``last_layer`` is wanted and no layer is trained in full.
    """
    if config.structure != "last_layer":
        return adapter
    full = [site for site in adapter.sites if site.trained_in_full]
    if not full:
        raise LaplaceLoRAError(
            "structure='last_layer' needs a head trained in full (PEFT modules_to_save) in the posterior, and there is "
            "none; use structure='kron', or include_modules_to_save=True."
        )
    held = tuple(site.name for site in adapter.sites if site is not full[-1])
    return dataclasses.replace(adapter, sites=(full[-1],), held_at_map=(*adapter.held_at_map, *held))
