"""An adapter's weights as PEFT stores them, and copies of them moved by a sample of the posterior."""

from collections.abc import Sequence

import peft
import torch
from torch import Tensor, nn

from laplace_lora.adapters.discovery import AdapterSites


def adapter_state_dict(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Return the adapter's weights under PEFT's own keys.

    Args:
        model: The PEFT model.
        adapter: Name of the adapter.

    Returns:
        Detached tensors, as ``peft.get_peft_model_state_dict`` names them, without frozen embeddings.
    """
    state = peft.get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {key: value.detach() for key, value in state.items()}


def perturbed_state_dict(model: nn.Module, adapter: AdapterSites, deviations: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the adapter's weights with a deviation added at every site.

    Args:
        model: The PEFT model that holds the trained values.
        adapter: Its sites.
        deviations: One (out_features, in_features) matrix per site, the bias as last column.

    Returns:
        New tensors under PEFT's keys, for ``peft.set_peft_model_state_dict``; in the parameters' dtype,
        but never below float32, where rounding would hide a small posterior variance.
    """
    state = {key: value.clone() for key, value in adapter_state_dict(model, adapter.adapter).items()}
    for site, deviation in zip(adapter.sites, deviations, strict=True):
        dtype = torch.promote_types(site.linear.weight.dtype, torch.float32)
        moved = (site.weights().to(deviation.dtype) + deviation).to(dtype)
        if site.bias_key is not None:
            state[site.bias_key] = moved[:, -1].clone()
            moved = moved[:, :-1]
        state[site.weight_key] = moved.clone()
    return state
