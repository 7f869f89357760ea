"""Reward models trained on preferences (Bradley-Terry)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from laplace_lora.errors import UnsupportedInputError
from laplace_lora.readouts.base import Readout, plain_rows
from laplace_lora.readouts.class_logits import sequence_logits
from laplace_lora.readouts.options import option_rows
from laplace_lora.readouts.rows import Draw, ModelRows, Places, Reading
from laplace_lora.readouts.scalar import check_one_output

CHOSEN, REJECTED = "_chosen", "_rejected"


class PairwiseReward(Readout):
    """Two rewards per example, of the chosen and of the rejected text: p(chosen preferred) = sigmoid(r_c - r_r).

    One backward pass serves both. Batches are TRL's (``DataCollatorForPreference``: the first half of the rows chosen,
    the second half rejected), pairs of entries (``input_ids_chosen``, ``input_ids_rejected``, ...), or inputs of shape
    (examples, 2, tokens). Labels, where there are any, say which of the two was preferred; without them, the first.

    Predictions hold the rewards' ``mean`` (B, 2) and ``covariance`` (B, 2, 2), and the probabilities of each being
    preferred. For the rewards of single texts: ``predict(batch, readout=Scalar())``.
    """

    name = "pairwise_reward"
    separate = True
    full_covariance = True

    def check_model(self, model: nn.Module) -> None:
        """See :meth:`Readout.check_model`."""
        check_one_output(type(self).__name__, model)

    def rows(self, batch: Mapping[str, Tensor], labels: Tensor | None) -> ModelRows:
        """See :meth:`Readout.rows`.

        Args:
            batch: Pairs, in one of the three layouts.
            labels: Not used.

        Returns:
            Two rows per example.

        Raises:
            UnsupportedInputError: The rows are no pairs.
        """
        if any(key.endswith(CHOSEN) for key in batch):
            return _halves(_joined(batch))
        if next(iter(batch.values())).dim() == 3:
            rows, _ = option_rows(type(self).__name__, batch)
            if rows.places is None or rows.places.options != 2 or rows.count != 2 * rows.examples:
                raise UnsupportedInputError("PairwiseReward expects two texts per example; give pairs.")
            return rows
        return _halves(batch)

    def read(self, model: nn.Module, rows: ModelRows, draw: Draw | None = None) -> Reading:
        """See :meth:`Readout.read`: (2 B,) rewards."""
        return Reading(sequence_logits(self, model, rows)[:, 0], rows.places)

    def labels(self, rows: ModelRows, labels: Tensor | None) -> Tensor:
        """See :meth:`Readout.labels`: the first text is the preferred one, if nothing else is said."""
        if labels is not None:
            return labels
        return torch.zeros(rows.examples, dtype=torch.long, device=next(iter(rows.inputs.values())).device)


def has_pairs(batch: Mapping[str, Tensor]) -> bool:
    """Say whether a batch holds pairs beyond doubt.

    Args:
        batch: Model inputs.

    Returns:
        Whether it names chosen and rejected texts, or has two texts per example.
    """
    tokens = batch.get("input_ids")
    return any(key.endswith(CHOSEN) for key in batch) or (
        tokens is not None and tokens.shape[1:2] == (2,) and tokens.dim() == 3
    )


def _halves(batch: Mapping[str, Tensor]) -> ModelRows:
    rows = plain_rows(batch)
    if rows.count % 2:
        raise UnsupportedInputError(
            f"PairwiseReward expects chosen texts and as many rejected ones, got {rows.count} rows; give pairs, or for "
            "the rewards of single texts predict(batch, readout=Scalar())."
        )
    half = rows.count // 2
    device = next(iter(batch.values())).device
    place = torch.cat([2 * torch.arange(half, device=device), 2 * torch.arange(half, device=device) + 1])
    return ModelRows(rows.inputs, rows.count, rows.mask, Places(place, half, 2))


def _joined(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put chosen and rejected texts under each other, padded on the right to one length."""
    joined = {}
    names = [key.removesuffix(CHOSEN) for key in batch if key.endswith(CHOSEN)]
    wanted = {name + end for name in (*names, "input_ids", "attention_mask") for end in (CHOSEN, REJECTED)}
    if set(batch) != wanted:
        raise UnsupportedInputError(
            f"the batch holds {', '.join(batch)}; give input_ids and attention_mask, each with _chosen and _rejected."
        )
    longest = max(batch[f"input_ids{end}"].shape[1] for end in (CHOSEN, REJECTED))
    for name in names:
        halves = [batch[name + end] for end in (CHOSEN, REJECTED)]
        joined[name] = torch.cat([torch.nn.functional.pad(half, (0, longest - half.shape[1])) for half in halves])
    return joined
