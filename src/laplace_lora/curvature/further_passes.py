"""More passes over the training data, for a curvature that the first one does not end."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from laplace_lora.adapters import Site
from laplace_lora.config import LaplaceConfig
from laplace_lora.curvature.base import Curvature
from laplace_lora.curvature.fitting import directions_of, draw_of, fold_batch, head_only
from laplace_lora.curvature.hashing import digest_numbers
from laplace_lora.curvature.tally import FitResult, row_digests
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.jacobians import jacobian_pass
from laplace_lora.likelihoods import Likelihood
from laplace_lora.readouts import Readout, split_labels

_REMEDY = "give a DataLoader or a list of batches, without random changes to the examples, or use structure='kron'."


def require_rereadable(passes: int, config: LaplaceConfig, loader: Iterable[Any]) -> None:
    """Refuse data that can be read only once where they are read more often, before they are read at all.

    Args:
        passes: How often they are read.
        config: Settings.
        loader: Training batches.

    Raises:
        LaplaceLoRAError: The loader is an iterator.
    """
    if passes > 1 and isinstance(loader, Iterator):
        raise LaplaceLoRAError(
            f"structure={config.structure!r} reads the training data {passes} times, and a "
            f"{type(loader).__name__} can be read only once; {_REMEDY}"
        )


def fit_further(
    curvature: Curvature,
    model: nn.Module,
    sites: Sequence[Site],
    config: LaplaceConfig,
    readout: Readout,
    likelihood: Likelihood,
    loader: Iterable[Mapping[str, Any]],
    first: FitResult,
) -> Curvature:
    """Read the data again as often as a curvature asks for; each pass costs what the first one did.

    Args:
        curvature: At the end of the first pass.
        model: The PEFT model.
        sites: The weight matrices.
        config: Settings.
        readout: How logits are read from the model.
        likelihood: Gives the GGN's rows; those of the first pass again, as random signs and labels belong to examples.
        loader: The same training batches; their order does not matter.
        first: What the first pass found.

    Returns:
        The curvature at its end.

    Raises:
        LaplaceLoRAError: The loader gave other examples than before.
    """
    passed = 1
    device = next(model.parameters()).device
    while (after := curvature.next_pass()) is not None:
        curvature, passed = after, passed + 1
        numbers = [first.inputs.new_zeros(0)]
        runner_of = jacobian_pass(model, sites, readout, head_only=head_only(config, readout))
        with torch.inference_mode(False), runner_of as runner:
            for batch in tqdm(loader, desc=f"fit, pass {passed}", unit="batch", disable=not config.progress):
                inputs, given = split_labels(batch, device)
                rows = readout.rows(inputs, given)
                labels = readout.labels(rows, given)
                numbers.append(digest_numbers(row_digests(rows)))
                logits = runner.forward(rows, draw_of(config, readout, rows)).logits
                directions, weights = directions_of(config, readout, likelihood, logits, labels, rows)
                fold_batch(runner, directions, weights, curvature, None)
        if not torch.equal(torch.cat(numbers).sort().values, first.inputs):
            raise LaplaceLoRAError(
                f"structure={config.structure!r} reads the training data again, and pass {passed} saw other examples "
                f"than the first; {_REMEDY}"
            )
    return curvature
