"""All methods by name: a new one is a file of its own and a line here."""

from laplace_lora.methods.base import Method
from laplace_lora.methods.blob import Blob, BlobMean
from laplace_lora.methods.ensembles import CheckpointEnsemble, DeepEnsemble
from laplace_lora.methods.laplace import (
    Laplace,
    LaplaceEvidence,
    LaplaceLowRank,
    LaplaceOfficial,
    LaplaceValidation,
    LastLayerLaplace,
    SoftmaxTwice,
)
from laplace_lora.methods.mc_dropout import McDropout
from laplace_lora.methods.swag import Swag
from laplace_lora.methods.temperature import Temperature
from laplace_lora.methods.tfb import Tfb
from laplace_lora.methods.trained import Map

#: In the order of the paper's tables.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Map(),
        Temperature(),
        McDropout(),
        CheckpointEnsemble(),
        DeepEnsemble(),
        LastLayerLaplace(),
        Laplace(),
        LaplaceEvidence(),
        LaplaceLowRank(),
        LaplaceValidation(),
        LaplaceOfficial(),
        SoftmaxTwice(),
        Swag(),
        BlobMean(),
        Blob(),
        Tfb(),
    )
}

__all__ = ["METHODS", "Method"]
