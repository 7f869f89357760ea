"""Restrict a posterior to some of an adapter's layers, named as in PEFT; the rest is held at its trained values.

What lies below the lowest layer that is left needs no backward pass: the graph ends there by itself.
"""

import dataclasses
import re
from collections.abc import Sequence

from laplace_lora.adapters.discovery import AdapterSites
from laplace_lora.adapters.site import Site
from laplace_lora.errors import LaplaceLoRAError


def select_sites(
    adapter: AdapterSites, target_modules: Sequence[str] | None, layers_to_transform: Sequence[int] | None
) -> AdapterSites:
    """Keep what is named, as ``target_modules`` and ``layers_to_transform`` of PEFT's ``LoraConfig`` name it.

    Args:
        adapter: All sites.
        target_modules: Names of adapted modules, whole or their ends (``query``), or of a head that was trained in
            full (``classifier``); all if None.
        layers_to_transform: Positions of layers, negative ones counted from the last; all if None. A head is in no
            layer, and is kept.

    Returns:
        The sites that are left; the others' names are held at MAP.

    Raises:
        LaplaceLoRAError: A name or a position fits nothing, or nothing is left.
    """
    if target_modules is None and layers_to_transform is None:
        return adapter
    kept = list(adapter.sites)
    for name in target_modules or ():
        if not any(_ends_in(site, name) for site in kept):
            known = sorted({_short(site) for site in kept})
            raise LaplaceLoRAError(
                f"target_modules: no trained module is named {name!r}; the adapter has {', '.join(known)}."
            )
    if target_modules is not None:
        kept = [site for site in kept if any(_ends_in(site, name) for name in target_modules)]
    if layers_to_transform is not None:
        there = sorted({layer for site in kept if (layer := layer_of(site)) is not None})
        depth = 1 + max((layer for site in adapter.sites if (layer := layer_of(site)) is not None), default=-1)
        wanted = {layer: layer + depth if layer < 0 else layer for layer in layers_to_transform}
        wrong = [layer for layer, position in wanted.items() if position not in there]
        if wrong:
            named = "" if target_modules is None else f" with {', '.join(target_modules)}"
            listed = ", ".join(map(str, there)) or "none"
            raise LaplaceLoRAError(
                f"layers_to_transform: the adapter has no layer {wrong[0]}{named}; it has {listed}, and negative "
                "positions count from the last."
            )
        kept = [site for site in kept if (layer := layer_of(site)) is None or layer in wanted.values()]
    if not kept:
        raise LaplaceLoRAError(
            "target_modules and layers_to_transform leave no weights for the posterior; name a trained module."
        )
    held = tuple(site.name for site in adapter.sites if site not in kept)
    return dataclasses.replace(adapter, sites=tuple(kept), held_at_map=(*adapter.held_at_map, *held))


def layer_of(site: Site) -> int | None:
    """Return the position of a site's layer: the first whole number among the parts of its module's name.

    A head is in no layer, though its parts may be numbered.

    Args:
        site: The site.

    Returns:
        The position; None where the module is in no numbered layer.
    """
    if site.trained_in_full or site.at_head:
        return None
    found = re.search(r"\.(\d+)(?:\.|$)", site.module)
    return None if found is None else int(found.group(1))


def _ends_in(site: Site, name: str) -> bool:
    # A head may consist of several layers, and goes by its own name as well as by theirs.
    return f".{site.module}".endswith(f".{name}") or (site.trained_in_full and f".{name}." in f".{site.module}.")


def _short(site: Site) -> str:
    return site.module.removeprefix("base_model.model.") if site.trained_in_full else site.module.rsplit(".", 1)[-1]
