"""Enumerate what an adapter trains, account for every parameter, and refuse by name what is not handled."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import Embedding, LoraLayer, ParamWrapper
from peft.tuners.lora.layer import MultiheadAttention
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from laplace_lora.adapters.active import active_adapter
from laplace_lora.adapters.biases import bias_sites
from laplace_lora.adapters.embedding import embedding_sites
from laplace_lora.adapters.full import full_sites
from laplace_lora.adapters.linear import linear_sites
from laplace_lora.adapters.site import Site
from laplace_lora.adapters.tied import joined
from laplace_lora.adapters.weights import adapter_state_dict, keys_by_parameter
from laplace_lora.errors import UnsupportedAdapterError


@dataclasses.dataclass(frozen=True)
class AdapterSites:
    """The weights of one adapter, split into what the posterior covers and what it holds fixed.

    Attributes:
        adapter: Name of the active adapter.
        sites: The matrices of the posterior, in the order of the model's modules.
        held_at_map: Names of trained layers that stay at their trained values.
    """

    adapter: str
    sites: tuple[Site, ...]
    held_at_map: tuple[str, ...]


def discover_sites(model: nn.Module, include_modules_to_save: bool = True) -> AdapterSites:
    """Find every trained matrix of the model's active LoRA adapter.

    Args:
        model: A ``peft.PeftModel`` with one active, unmerged LoRA adapter. It may be loaded frozen.
        include_modules_to_save: Whether fully trained layers belong to the posterior; otherwise they
            are listed as held at MAP.

    Returns:
        The sites and what is held fixed.

    Raises:
        UnsupportedAdapterError: Anything trained that none of the kinds of site accounts for, by name.
    """
    adapter = active_adapter(model)
    sites: list[Site] = []
    held: list[str] = []
    accounted: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            found = list(_lora_sites(name, module, adapter))
        elif isinstance(module, ModulesToSaveWrapper):
            if adapter not in module.modules_to_save:
                continue
            if not include_modules_to_save:
                held.append(name)
                accounted.update(id(p) for p in module.modules_to_save[adapter].parameters())
                continue
            found = list(full_sites(name, module.modules_to_save[adapter]))
        elif isinstance(module, AuxiliaryTrainingWrapper | BaseTunerLayer):
            raise UnsupportedAdapterError(
                f"{name} ({type(module).__name__}) is trained but is neither a LoRA pair nor a linear layer; "
                "retrain without it."
            )
        else:
            continue
        sites += found
        accounted.update(id(p) for site in found for p in site.parameters)
    keys = keys_by_parameter(model, adapter_state_dict(model, adapter))
    biases = list(bias_sites(model, keys, accounted))
    sites += biases
    accounted.update(id(site.weight) for site in biases)
    _refuse_unaccounted(model, adapter, accounted, set(keys))
    if not sites:
        raise UnsupportedAdapterError(
            f"adapter {adapter!r} has no weights that a posterior could cover; check target_modules."
        )
    head = set(_modules_of_head(model))
    marked = [dataclasses.replace(s, at_head=all(id(use.hooked) in head for use in s.uses)) for s in sites]
    return AdapterSites(adapter, joined(marked), tuple(held))


def output_embeddings(model: nn.Module) -> nn.Module | None:
    """Return a language model's last layer, which turns hidden states into one logit per token.

    Args:
        model: The PEFT model.

    Returns:
        The layer as the model calls it, with PEFT's wrapper around it if there is one; or None.
    """
    base: Any = getattr(model, "get_base_model", lambda: model)()
    find = getattr(base, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if isinstance(head, nn.Module) else None


def _modules_of_head(model: nn.Module) -> Iterator[int]:
    head = output_embeddings(model)
    if head is not None:
        yield from (id(module) for module in head.modules())


def _lora_sites(name: str, module: LoraLayer, adapter: str) -> Iterator[Site]:
    if isinstance(module, ParamWrapper):
        if adapter in module.lora_A:
            raise UnsupportedAdapterError(
                f"{name}: LoRA on a parameter of its own ({module.parameter_name}; LoraConfig(target_parameters=...), "
                "as for experts) is not handled; retrain with target_modules."
            )
        return
    if isinstance(module, MultiheadAttention):
        if adapter in module.lora_A:
            raise UnsupportedAdapterError(
                f"{name} (MultiheadAttention): PEFT merges its LoRA into the weights at every call, and no layer of it "
                "runs by itself; retrain without this module."
            )
        return
    variant = getattr(module, "lora_variant", {}).get(adapter)
    embedding = adapter in module.lora_embedding_A
    if variant is not None and (embedding or type(variant) is not DoraLinearVariant):
        raise UnsupportedAdapterError(
            f"{name}: LoRA of kind {type(variant).__name__} is not handled; retrain with plain LoRA or, on linear "
            "layers, DoRA."
        )
    if not embedding:
        yield from linear_sites(name, module, adapter)
    elif isinstance(module, Embedding):
        yield from embedding_sites(name, module, adapter)
    else:
        raise UnsupportedAdapterError(
            f"{name} ({type(module).__name__}) is an embedding of an unknown kind; retrain without it."
        )


def _refuse_unaccounted(model: nn.Module, adapter: str, accounted: set[int], saved: set[int]) -> None:
    """Refuse any parameter that is trained, carries the adapter's name or is saved with it, and is at no site."""
    names = []
    for name, parameter in model.named_parameters():
        # PEFT keeps what it replaced; LoraConfig(bias="all") marks its biases as trained, and nothing uses them.
        if ".original_module." in name:
            continue
        of_adapter = f".{adapter}." in f"{name}." and ("lora_" in name or ".modules_to_save." in name)
        if (of_adapter or parameter.requires_grad or id(parameter) in saved) and id(parameter) not in accounted:
            names.append(name)
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UnsupportedAdapterError(
            f"trained parameters that no LoRA pair or linear layer accounts for: {shown}; freeze them "
            "(requires_grad_(False)) if they were not trained, or retrain without them."
        )
