"""Everything the library knows about PEFT: which weights an adapter trains, and where they act."""

from laplace_lora.adapters.active import active_adapter, altered_start, task_type
from laplace_lora.adapters.discovery import AdapterSites, discover_sites, output_embeddings
from laplace_lora.adapters.files import SavedAdapter, read_saved_adapter
from laplace_lora.adapters.fingerprint import Fingerprint, fingerprint
from laplace_lora.adapters.kinds import FACTORIES, ModelKind
from laplace_lora.adapters.loading import empty_model, load_model, unfilled_keys
from laplace_lora.adapters.selection import select_sites
from laplace_lora.adapters.site import Site, with_rows
from laplace_lora.adapters.weights import adapter_state_dict, moved_to, perturbed_state_dicts

__all__ = [
    "FACTORIES",
    "AdapterSites",
    "Fingerprint",
    "ModelKind",
    "SavedAdapter",
    "Site",
    "active_adapter",
    "adapter_state_dict",
    "altered_start",
    "discover_sites",
    "empty_model",
    "fingerprint",
    "load_model",
    "moved_to",
    "output_embeddings",
    "perturbed_state_dicts",
    "read_saved_adapter",
    "select_sites",
    "task_type",
    "unfilled_keys",
    "with_rows",
]
