"""Everything the library knows about PEFT: which weights an adapter trains, and where they act."""

from laplace_lora.adapters.discovery import AdapterSites, discover_sites
from laplace_lora.adapters.files import SavedAdapter, read_saved_adapter
from laplace_lora.adapters.fingerprint import Fingerprint, fingerprint
from laplace_lora.adapters.loading import load_classifier, unfilled_keys
from laplace_lora.adapters.site import Site
from laplace_lora.adapters.weights import adapter_state_dict, perturbed_state_dict

__all__ = [
    "AdapterSites",
    "Fingerprint",
    "SavedAdapter",
    "Site",
    "adapter_state_dict",
    "discover_sites",
    "fingerprint",
    "load_classifier",
    "perturbed_state_dict",
    "read_saved_adapter",
    "unfilled_keys",
]
