"""LoRA on embeddings: ``y = E[i] + s B A[:, i]``, the token's number i in place of a one-hot input."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import Embedding
from torch import Tensor

from laplace_lora.adapters.site import LinearUse, Site


def embedding_sites(name: str, module: Embedding, adapter: str) -> Iterator[Site]:
    """Find the matrices of a LoRA pair on an embedding.

    Args:
        name: Qualified name of the adapted module.
        module: PEFT's layer.
        adapter: Name of the adapter.

    Yields:
        lora_embedding_A (r, tokens) and lora_embedding_B (d, r).
    """
    if adapter not in module.lora_embedding_A:
        return
    first, second = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
    yield Site(f"{name}.lora_embedding_A", name, (FirstUse(module, adapter),), first, one_hot=True)
    yield Site(f"{name}.lora_embedding_B", name, (SecondUse(module, adapter),), second)


@dataclasses.dataclass(frozen=True, eq=False)
class _EmbeddingUse(LinearUse):
    """What both factors share: the module's input, which is kept, holds the tokens' numbers.

    Attributes:
        hooked: PEFT's layer.
        adapter: Name of the adapter.
    """

    adapter: str

    def _scale(self, like: Tensor) -> Tensor:
        layer: Any = self.hooked
        scale = like.new_tensor(layer.scaling[self.adapter])
        # Gemma's embeddings are multiplied by a constant, and PEFT multiplies the adapter's part alike.
        # Older versions of PEFT don't know of it.
        find = getattr(layer, "_get_embed_scale", None)
        embed_scale = find() if find is not None else None
        return scale if embed_scale is None else scale * embed_scale.to(like)


class FirstUse(_EmbeddingUse):
    """lora_embedding_A: columns picked by tokens."""

    def tokens(self, kept: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Use.tokens`.

        Args:
            kept: (B, T) tokens.
            gradient: (B, T, d).

        Returns:
            The tokens, and s B^T g; 0 at the padding token, whose column never receives a gradient.
        """
        layer: Any = self.hooked
        factor = layer.lora_embedding_B[self.adapter].detach()
        back = (gradient.to(factor.dtype) @ factor) * self._scale(factor)
        padding = layer.get_base_layer().padding_idx
        if padding is not None:
            back = back.masked_fill((kept == padding)[..., None], 0.0)
        return kept, back


class SecondUse(_EmbeddingUse):
    """lora_embedding_B: a linear layer whose inputs are columns of lora_embedding_A."""

    def tokens(self, kept: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`Use.tokens`.

        Args:
            kept: (B, T) tokens.
            gradient: (B, T, d).

        Returns:
            s A[:, i] and g.
        """
        layer: Any = self.hooked
        factor = layer.lora_embedding_A[self.adapter].detach()
        return factor.T[kept] * self._scale(factor), gradient
