"""Enumerate what an adapter trains, account for every parameter, and refuse by name what is not handled."""

import dataclasses
from collections.abc import Iterator

import peft
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from laplace_lora.adapters.site import Site
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
        UnsupportedAdapterError: Anything trained that is not a plain LoRA pair or a linear layer, by name.
    """
    adapter = _active_adapter(model)
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
            found = list(_fully_trained_sites(name, module.modules_to_save[adapter]))
        elif isinstance(module, AuxiliaryTrainingWrapper | BaseTunerLayer):
            raise UnsupportedAdapterError(
                f"{name} ({type(module).__name__}) is trained but is neither a LoRA pair nor a linear layer; "
                "retrain without it."
            )
        else:
            continue
        sites += found
        accounted.update(id(p) for site in found for p in site.linear.parameters())
    _refuse_unaccounted(model, adapter, accounted)
    _refuse_shared(sites)
    if not sites:
        raise UnsupportedAdapterError(
            f"adapter {adapter!r} has no weights that a posterior could cover; check target_modules."
        )
    return AdapterSites(adapter, tuple(sites), tuple(held))


def _active_adapter(model: nn.Module) -> str:
    if not isinstance(model, peft.PeftModel):
        raise UnsupportedAdapterError(
            f"expected a peft.PeftModel, got {type(model).__name__}; wrap the model with peft.get_peft_model or "
            "load it with peft.PeftModel.from_pretrained."
        )
    active = model.active_adapters
    if len(active) != 1:
        raise UnsupportedAdapterError(
            f"adapters {', '.join(active)} are active at once; activate one with model.set_adapter(name)."
        )
    config = model.peft_config[active[0]]
    if config.peft_type != peft.PeftType.LORA:
        raise UnsupportedAdapterError(
            f"adapter {active[0]!r} is of type {config.peft_type}, not LORA; train a LoRA adapter."
        )
    bias = getattr(config, "bias", "none")
    if bias != "none":
        raise UnsupportedAdapterError(
            f"adapter {active[0]!r} trains base-model biases (bias={bias!r}), which the posterior does not "
            "cover; retrain with LoraConfig(bias='none')."
        )
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            raise UnsupportedAdapterError(f"the adapter is merged into {name}; call model.unmerge_adapter() first.")
        if isinstance(module, BaseTunerLayer) and module.disable_adapters:
            raise UnsupportedAdapterError(f"the adapter is disabled at {name}; call model.enable_adapter_layers().")
    return active[0]


def _lora_sites(name: str, module: LoraLayer, adapter: str) -> Iterator[Site]:
    variant = getattr(module, "lora_variant", {}).get(adapter)
    kind = type(variant).__name__ if variant is not None else type(module).__name__
    if adapter in module.lora_embedding_A or variant is not None:
        raise UnsupportedAdapterError(
            f"{name}: LoRA of kind {kind} is not handled; retrain with plain LoRA on linear layers."
        )
    for factor in ("lora_A", "lora_B"):
        linears = getattr(module, factor)
        if adapter not in linears:
            return
        linear = linears[adapter]
        if type(linear) is not nn.Linear:
            raise UnsupportedAdapterError(
                f"{name}.{factor} is a {type(linear).__name__}, not a Linear; retrain with LoRA on linear layers only."
            )
        key = f"{name}.{factor}"
        bias_key = f"{key}.bias" if linear.bias is not None else None
        yield Site(key, name, linear, f"{key}.weight", bias_key, trained_in_full=False)


def _fully_trained_sites(name: str, trained: nn.Module) -> Iterator[Site]:
    for inner, module in trained.named_modules():
        full = f"{name}.{inner}" if inner else name
        if type(module) is nn.Linear:
            bias_key = f"{full}.bias" if module.bias is not None else None
            yield Site(full, full, module, f"{full}.weight", bias_key, trained_in_full=True)
        elif next(module.parameters(recurse=False), None) is not None:
            raise UnsupportedAdapterError(
                f"{full} ({type(module).__name__}) is trained in full (modules_to_save) and is not a Linear; retrain "
                "without it, or hold it at its trained values with LaplaceConfig(include_modules_to_save=False)."
            )


def _refuse_unaccounted(model: nn.Module, adapter: str, accounted: set[int]) -> None:
    """Refuse any parameter that is trained, or carries the adapter's name, and is at no site."""
    names = []
    for name, parameter in model.named_parameters():
        of_adapter = f".{adapter}." in f"{name}." and ("lora_" in name or ".modules_to_save." in name)
        if (of_adapter or parameter.requires_grad) and id(parameter) not in accounted:
            names.append(name)
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UnsupportedAdapterError(
            f"trained parameters that no LoRA pair or linear layer accounts for: {shown}; freeze them "
            "(requires_grad_(False)) if they were not trained, or retrain without them."
        )


def _refuse_shared(sites: list[Site]) -> None:
    seen: dict[int, str] = {}
    for site in sites:
        other = seen.setdefault(id(site.linear.weight), site.name)
        if other != site.name:
            raise UnsupportedAdapterError(
                f"{other} and {site.name} share one weight; a shared weight is not handled: untie them and retrain."
            )
