"""Weights that two modules share: one matrix with several uses, never two."""

import dataclasses
import itertools
from collections.abc import Sequence

from torch import Tensor

from laplace_lora.adapters.site import Site, TransposedUse
from laplace_lora.errors import UnsupportedAdapterError


def joined(sites: Sequence[Site]) -> tuple[Site, ...]:
    """Join sites whose parameters lie in the same memory.

    PEFT ties a LoRA pair on the output embeddings to that on the input embeddings by a transposed view of its memory
    (``ensure_weight_tying``), and modules can simply share a parameter.

    Args:
        sites: All sites.

    Returns:
        Every matrix once, in the order of first use.

    Raises:
        UnsupportedAdapterError: Only parts of two matrices are shared.
    """
    places: dict[int, int] = {}
    result: list[Site] = []
    for site in sites:
        place = places.setdefault(site.weight.data_ptr(), len(result))
        if place == len(result):
            result.append(site)
            continue
        other = result[place]
        if site.bias is not other.bias or not _same_memory(site.weight, other.weight):
            raise UnsupportedAdapterError(_shared(other.name, site.name))
        turned = site.weight.shape != other.weight.shape or site.weight.stride() != other.weight.stride()
        uses = tuple(TransposedUse(use) for use in site.uses) if turned else site.uses
        result[place] = dataclasses.replace(other, uses=(*other.uses, *uses), at_head=False)
    _refuse_overlaps(result)
    return tuple(result)


def _refuse_overlaps(sites: Sequence[Site]) -> None:
    spans = sorted((*_span(site.weight), site.name) for site in sites)
    for (_, end, name), (start, _, next_name) in itertools.pairwise(spans):
        if start < end:
            raise UnsupportedAdapterError(_shared(name, next_name))


def _span(weight: Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and of that after its last one."""
    last = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    return weight.data_ptr(), weight.data_ptr() + (last + 1) * weight.element_size()


def _shared(name: str, other: str) -> str:
    return f"{name} and {other} share a part of their weights; untie them and retrain."


def _same_memory(left: Tensor, right: Tensor) -> bool:
    if left.shape == right.shape and left.stride() == right.stride():
        return True
    return left.T.shape == right.shape and left.T.stride() == right.stride()
