"""Everything the library knows about PEFT: which weights an adapter trains, and where they act."""

from laplace_lora.adapters.discovery import AdapterSites, discover_sites
from laplace_lora.adapters.fingerprint import Fingerprint, fingerprint
from laplace_lora.adapters.site import Site
from laplace_lora.adapters.weights import adapter_state_dict, perturbed_state_dict

__all__ = [
    "AdapterSites",
    "Fingerprint",
    "Site",
    "adapter_state_dict",
    "discover_sites",
    "fingerprint",
    "perturbed_state_dict",
]
