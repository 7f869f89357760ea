"""A site: one trained weight matrix and the linear layer through which it acts."""

import dataclasses

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One weight matrix of the posterior: ``y = W x`` or, with a bias, ``y = [W b] [x; 1]``.

    LoRA's two factors are ordinary linear layers, and so is a fully trained head; a site is therefore
    all that the mathematics needs to know of an adapter.

    Attributes:
        name: Unique name, the qualified name of ``linear`` without the adapter's name.
        module: Qualified name of the adapted module; lora_A and lora_B of one module share it.
        linear: The layer whose input and output gradient give the Jacobian.
        weight_key: Key of the weight in the adapter's state dict.
        bias_key: Key of the bias in the adapter's state dict, or None.
        trained_in_full: Whether the layer was trained beside the adapter (PEFT ``modules_to_save``).
    """

    name: str
    module: str
    linear: nn.Linear
    weight_key: str
    bias_key: str | None
    trained_in_full: bool

    @property
    def out_features(self) -> int:
        """Rows of the matrix."""
        return self.linear.weight.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the matrix, the bias counted as one more."""
        return self.linear.weight.shape[1] + (self.linear.bias is not None)

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features

    def weights(self) -> Tensor:
        """Return the trained values.

        Returns:
            A detached (out_features, in_features) matrix, the bias as its last column, in the
            parameter's dtype.
        """
        weight = self.linear.weight.detach()
        if self.linear.bias is None:
            return weight
        return torch.cat([weight, self.linear.bias.detach()[:, None]], dim=1)
