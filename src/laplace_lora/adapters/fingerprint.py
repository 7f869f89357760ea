"""What a posterior was fitted to: digests of the adapter and of the base model under it."""

import dataclasses
import hashlib

import torch
from torch import Tensor, nn

from laplace_lora.adapters.packed import stored_values
from laplace_lora.adapters.weights import adapter_state_dict

# Values read per base-model tensor. Whole base models are many gigabytes; a spread of values from every
# tensor tells two checkpoints apart at the price of reading a few megabytes.
_SAMPLED_VALUES = 64


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Identity of an adapter and its base model.

    Attributes:
        base_name: ``name_or_path`` of the base model's configuration, for people; not compared.
        base_class: Class of the base model.
        base_dtype: dtype of its first floating-point parameter.
        base_sha256: Digest of names, shapes, dtypes and a spread of values of every base tensor.
        adapter_sha256: Digest of names, shapes, dtypes and all values of the adapter's tensors.
    """

    base_name: str
    base_class: str
    base_dtype: str
    base_sha256: str
    adapter_sha256: str

    def differences(self, other: "Fingerprint") -> list[str]:
        """Say in words where two fingerprints disagree.

        Args:
            other: The fingerprint found.

        Returns:
            One phrase per difference; empty when they agree.
        """
        phrases = []
        for field, label in (
            ("base_class", "base model class"),
            ("base_dtype", "base model dtype"),
            ("base_sha256", "base model weights"),
            ("adapter_sha256", "adapter weights"),
        ):
            mine, its = getattr(self, field), getattr(other, field)
            if mine != its:
                phrases.append(f"{label} (fitted: {mine[:16]}, here: {its[:16]})")
        return phrases


def fingerprint(model: nn.Module, adapter: str) -> Fingerprint:
    """Digest a PEFT model.

    Args:
        model: The PEFT model.
        adapter: Name of the adapter.

    Returns:
        Its fingerprint. Equal models give equal fingerprints on any device.
    """
    base: nn.Module = getattr(model, "get_base_model")()  # noqa: B009 - nn.Module is typed, PEFT is not
    config = getattr(base, "config", None)
    digest = hashlib.sha256()
    dtype = ""
    for name, parameter in sorted(base.named_parameters()):
        # Weights that PEFT added are not the base's; those it wrapped keep their names under base_layer.
        if "lora_" in name or ".modules_to_save." in name or ".original_module." in name:
            continue
        if not dtype and parameter.is_floating_point():
            dtype = str(parameter.dtype)
        owner = base.get_submodule(name.rpartition(".")[0])
        for part, whole in stored_values(owner, parameter):
            values = whole.flatten()
            step = max(1, values.numel() // _SAMPLED_VALUES)
            _absorb(digest, f"{name}{part}", whole, values[::step][:_SAMPLED_VALUES])
    adapter_digest = hashlib.sha256()
    for key, value in sorted(adapter_state_dict(model, adapter).items()):
        _absorb(adapter_digest, key, value, value.flatten())
    return Fingerprint(
        base_name=str(getattr(config, "name_or_path", "") or ""),
        base_class=type(base).__name__,
        base_dtype=dtype,
        base_sha256=digest.hexdigest(),
        adapter_sha256=adapter_digest.hexdigest(),
    )


def _absorb(digest: "hashlib._Hash", name: str, whole: Tensor, values: Tensor) -> None:
    digest.update(f"{name}:{tuple(whole.shape)}:{whole.dtype}\n".encode())
    digest.update(values.contiguous().cpu().view(torch.uint8).numpy().tobytes())
