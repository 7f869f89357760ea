"""An adapter's weights as PEFT stores them, and copies of them moved by a sample of the posterior."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence

import peft
import torch
from torch import Tensor, nn

from laplace_lora.adapters.active import active_adapter
from laplace_lora.adapters.packed import plain_state
from laplace_lora.adapters.site import Site


def adapter_state_dict(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Return the adapter's weights under PEFT's own keys.

    Args:
        model: The PEFT model.
        adapter: Name of the adapter.

    Returns:
        Detached tensors, as ``peft.get_peft_model_state_dict`` names them, without frozen embeddings.
    """
    with warnings.catch_warnings():
        # PEFT takes the bias of a lora_B for a shard of a matrix.
        warnings.filterwarnings("ignore", message=".*LoRA tensor.*have invalid shape")
        state = peft.get_peft_model_state_dict(model, plain_state(model), adapter, save_embedding_layers=False)
    return {key: value.detach() for key, value in state.items()}


def keys_by_parameter(model: nn.Module, state: Mapping[str, Tensor]) -> dict[int, list[str]]:
    """Match parameters to the entries of a state dict by the memory that they share, not by rules of naming.

    Args:
        model: The PEFT model.
        state: From :func:`adapter_state_dict`.

    Returns:
        ``id`` of a parameter to its keys: several where weights are tied.
    """
    keys: dict[int, list[str]] = {}
    for key, value in state.items():
        keys.setdefault(value.data_ptr(), []).append(key)
    return {id(p): keys[p.data_ptr()] for p in model.parameters() if p.numel() and p.data_ptr() in keys}


def perturbed_state_dicts(
    model: nn.Module, adapter: str, sites: Sequence[Site], deviations: Sequence[Tensor]
) -> list[dict[str, Tensor]]:
    """Return copies of the adapter's weights, with deviations added at every site.

    Args:
        model: The PEFT model that holds the trained values.
        adapter: Name of the adapter.
        sites: Its sites.
        deviations: One (n, out_features, in_features) tensor per site, the bias as last column.

    Returns:
        n dictionaries of new tensors under PEFT's keys, for ``peft.set_peft_model_state_dict``; in the parameters'
        dtype, but never below float32, where rounding would hide a small posterior variance.
    """
    state = adapter_state_dict(model, adapter)
    keys = keys_by_parameter(model, state)
    copies = []
    for draw in zip(*deviations, strict=True):
        moved: dict[str, Tensor] = {}
        for site, deviation in zip(sites, draw, strict=True):
            for parameter, value in site.moved(deviation).items():
                for key in keys[id(parameter)]:
                    # Tied output embeddings hold the transposed matrix.
                    turned = state[key].stride() != parameter.stride()
                    moved[key] = (value.T if turned else value).clone(memory_format=torch.contiguous_format)
        copies.append({key: moved[key] if key in moved else value.clone() for key, value in state.items()})
    return copies


@contextlib.contextmanager
def moved_to(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a model the weights of a drawn adapter for a while.

    Args:
        model: The PEFT model.
        state: Under PEFT's keys, from :func:`perturbed_state_dicts`.

    Yields:
        Nothing. The trained weights are put back bit by bit, whatever happens.
    """
    current = adapter_state_dict(model, active_adapter(model))
    before = {key: value.clone() for key, value in current.items()}
    try:
        # The state dict's tensors are the parameters' own memory.
        for key, value in current.items():
            value.copy_(state[key])
        yield
    finally:
        for key, value in current.items():
            value.copy_(before[key])
