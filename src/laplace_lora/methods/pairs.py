"""Pairs of matrices of a plain LoRA adapter, for methods that are defined on nothing else; and seeded generators."""

import dataclasses
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from laplace_lora.adapters import Site, adapter_state_dict, discover_sites
from laplace_lora.adapters.site import ConstantUse, LinearUse
from laplace_lora.adapters.weights import keys_by_parameter
from laplace_lora.errors import UnsupportedAdapterError


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """One LoRA pair, of which the output is ``scale * B A x``.

    Attributes:
        name: The adapted module.
        first: lora_A, with a weight of (r, in).
        second: lora_B, with a weight of (out, r).
        key: PEFT's key of lora_A's weight.
    """

    name: str
    first: nn.Linear
    second: nn.Linear
    key: str


def plain_pairs(model: nn.Module, method: str) -> list[Pair]:
    """Find the pairs of a plain LoRA adapter on linear layers.

    Layers and biases that are trained in full beside it are left out.

    Args:
        model: The PEFT model.
        method: Who asks, for the error.

    Returns:
        The pairs, in the order of the model's modules; at least one.

    Raises:
        UnsupportedAdapterError: A part of the adapter is of another kind, such as DoRA or LoRA of an embedding.
    """
    found = discover_sites(model)
    keys = keys_by_parameter(model, adapter_state_dict(model, found.adapter))
    factors: dict[str, dict[str, nn.Linear]] = {}
    for site in found.sites:
        if site.trained_in_full or all(type(use) is ConstantUse for use in site.uses):
            continue
        factors.setdefault(site.module, {})[site.name.rpartition(".")[2]] = _plain(site, method)
    if not factors:
        raise UnsupportedAdapterError(
            f"{method} needs LoRA on linear layers, and the adapter has none; retrain with it."
        )
    return [
        Pair(name, pair["lora_A"], pair["lora_B"], keys[id(pair["lora_A"].weight)][0]) for name, pair in factors.items()
    ]


def _plain(site: Site, method: str) -> nn.Linear:
    if len(site.uses) != 1 or type(site.uses[0]) is not LinearUse:
        raise UnsupportedAdapterError(
            f"{method} is defined for plain LoRA on linear layers, and {site.name} is of another kind (DoRA, LoRA of "
            "an embedding, or weights that modules share); retrain with plain LoRA."
        )
    return cast(nn.Linear, site.uses[0].hooked)


def generator(device: torch.device, *numbers: int) -> torch.Generator:
    """Return a random generator that depends on all of some numbers, and on nothing else.

    Args:
        device: Where it draws.
        *numbers: Whole numbers, such as a seed, a step and an index.

    Returns:
        The generator; those of different numbers are independent.
    """
    entropy = [number % 2**63 for number in numbers]
    seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed)


def exact(weight: Tensor) -> torch.dtype:
    """Return the type to hold a weight and small deviations from it in.

    Args:
        weight: The weight.

    Returns:
        Its own type, but float32 at least.
    """
    return torch.promote_types(weight.dtype, torch.float32)
