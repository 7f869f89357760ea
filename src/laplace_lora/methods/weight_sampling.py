"""Weight sampling: class probabilities averaged over drawn adapters, run through the network as it is.

The posterior's own predictive linearises the network around the trained weights. This does not: it draws adapters from
the same Gaussian and averages their probabilities. It is a baseline and no rule of ``LaplaceConfig.predictive``, since
every draw takes a forward pass of the model over the data, where a rule needs the Gaussian logits alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laplace_lora.adapters import moved_to
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import Probabilities
from laplace_lora.jacobians import evaluating
from laplace_lora.laplace import LaplaceLoRA
from laplace_lora.readouts import split_labels


@torch.no_grad()
def weight_sampling(la: LaplaceLoRA, loader: Iterable[Mapping[str, Any]], samples: int, seed: int = 0) -> Probabilities:
    """Average the probabilities of adapters drawn from the posterior, without linearising the network.

    Takes ``samples`` forward passes per batch, and memory for as many adapters. Probabilities are averaged, not
    logits; the standard error of one near one half is up to 0.5 / sqrt(samples).

    Args:
        la: A fitted posterior over an adapter whose outputs are classes. Its model is left bit by bit as it was found.
        loader: Batches, as for ``la.predict_dataset``; read once. Labels in them are ignored.
        samples: Adapters to draw.
        seed: Fixes the draw; all batches see the same adapters.

    Returns:
        (N, K) mean probabilities, all examples in order; 0 for options that an example lacks.

    Raises:
        LaplaceLoRAError: Outputs are no classes, ``samples`` is not positive, the posterior is not fitted, or the
            loader gave no batch.
    """
    kind = la.readout.likelihood
    if (la.config.likelihood if kind == "configured" else kind) != "categorical":
        raise LaplaceLoRAError(
            f"weight_sampling averages probabilities of classes, and {la.readout!r} reads none; use la.sample(n) and "
            "run the adapters yourself."
        )
    states = la.sample(samples, seed)
    device = next(la.model.parameters()).device
    parts = []
    with evaluating(la.model):
        for batch in loader:
            rows = la.readout.rows(*split_labels(batch, device))
            mean: Tensor | None = None
            for state in states:
                with moved_to(la.model, state):
                    share = torch.softmax(la.readout.read(la.model, rows).logits.double(), dim=-1) / len(states)
                mean = share if mean is None else mean + share
            assert mean is not None  # la.sample gives at least one
            parts.append(Probabilities(mean.cpu().numpy()))
    if not parts:
        raise LaplaceLoRAError("there are no examples to predict; check the data loader.")
    widest = max(part.values.shape[1] for part in parts)
    return Probabilities(np.concatenate([part.widened(widest).values for part in parts]))
