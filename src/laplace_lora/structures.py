"""The table of posterior structures: which fold collects what, and which Gaussian is built from it."""

import dataclasses

from torch import Tensor

from laplace_lora.adapters import AdapterSites, select_sites, with_rows
from laplace_lora.config import LaplaceConfig, Structure
from laplace_lora.curvature import (
    Curvature,
    DiagonalCurvature,
    EigenbasisCurvature,
    IsotropicCurvature,
    KroneckerCurvature,
    KroneckerLowRankCurvature,
    LowRankCurvature,
    RowCurvature,
    TruncatedKroneckerCurvature,
)
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.posterior import (
    DiagonalPosterior,
    EigenvalueCorrectedPosterior,
    ExactPosterior,
    IsotropicPosterior,
    KroneckerLowRankPosterior,
    KroneckerPosterior,
    LowRankPosterior,
    Posterior,
)


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
    "kron_svd": StructureParts(TruncatedKroneckerCurvature, KroneckerPosterior),
    "ekfac": StructureParts(EigenbasisCurvature, EigenvalueCorrectedPosterior),
    "diag": StructureParts(DiagonalCurvature, DiagonalPosterior),
    "exact": StructureParts(RowCurvature, ExactPosterior),
    "low_rank": StructureParts(LowRankCurvature, LowRankPosterior),
    "kron_low_rank": StructureParts(KroneckerLowRankCurvature, KroneckerLowRankPosterior),
    "isotropic": StructureParts(IsotropicCurvature, IsotropicPosterior),
    "last_layer": StructureParts(KroneckerCurvature, KroneckerPosterior, last_layer=True),
}


def choose_sites(adapter: AdapterSites, config: LaplaceConfig) -> AdapterSites:
    """Keep the sites that are named, all if none is, and of these for ``last_layer`` the head; the rest is held at MAP.

    The head is the last layer trained in full or, where there is none, the LoRA on the output embeddings.

    Args:
        adapter: All sites.
        config: Says the structure, and names modules and layers.

    Returns:
        The sites that the posterior covers.

    Raises:
        LaplaceLoRAError: ``last_layer`` is wanted and no head is trained, or what is named is not there.
    """
    adapter = select_sites(adapter, config.target_modules, config.layers_to_transform)
    if config.structure != "last_layer":
        return adapter
    head = [site for site in adapter.sites if site.trained_in_full][-1:]
    head = head or [site for site in adapter.sites if site.at_head]
    if not head:
        raise LaplaceLoRAError(
            "structure='last_layer' needs a trained head in the posterior (PEFT modules_to_save, or LoRA on the output "
            "embeddings), and there is none; use structure='kron', or include_modules_to_save=True."
        )
    held = tuple(site.name for site in adapter.sites if site not in head)
    return dataclasses.replace(adapter, sites=tuple(head), held_at_map=(*adapter.held_at_map, *held))


def choose_rows(adapter: AdapterSites, rows: Tensor | None) -> AdapterSites:
    """Restrict sites at the output embeddings to the rows that a readout reads.

    Args:
        adapter: The sites.
        rows: Tokens; None for all.

    Returns:
        The sites. lora_A of the output embeddings, whose rows are no tokens, stays whole.
    """
    if rows is None:
        return adapter
    sites = [
        with_rows(site, rows) if site.at_head and not site.name.endswith(".lora_A") else site for site in adapter.sites
    ]
    return dataclasses.replace(adapter, sites=tuple(sites))
