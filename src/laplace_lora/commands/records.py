"""Predictions as JSON objects, one per example."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.predictive import Predictive


def records(predictive: Predictive, names: Sequence[str] | None, partial: bool = False) -> Iterator[dict[str, Any]]:
    """Write out predictions.

    Args:
        predictive: Of B examples.
        names: Names of the K classes, or None.
        partial: Whether to say what classes held fixed amount to (``neglected_mass``).

    Yields:
        Per example: ``label`` (the likeliest class: its name, or its index where there are no names), its
        ``confidence``, ``probabilities`` and ``map_probabilities`` of all classes in the order of the logits, and in
        nats ``total_entropy``, ``aleatoric_entropy`` and ``mutual_information`` (the epistemic part).
    """
    values = predictive.to("cpu")
    for i in range(len(values)):
        predicted = int(values.prediction[i])
        record = {
            "label": predicted if names is None else names[predicted],
            "confidence": float(values.confidence[i]),
            "probabilities": values.probabilities[i].tolist(),
            "total_entropy": float(values.total_entropy[i]),
            "aleatoric_entropy": float(values.aleatoric_entropy[i]),
            "mutual_information": float(values.mutual_information[i]),
            "map_probabilities": values.map_probabilities[i].tolist(),
        }
        if partial:
            record["neglected_mass"] = float(values.neglected_mass[i])
        yield record


def require_probabilities(predictive: Predictive) -> None:
    """Refuse predictions that are no numbers; they are no JSON either.

    Args:
        predictive: Of B examples.

    Raises:
        LaplaceLoRAError: One is NaN or infinite.
    """
    values = (predictive.probabilities, predictive.map_probabilities, predictive.mutual_information)
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise LaplaceLoRAError(
            "the posterior makes predictions that are NaN or infinite: its prior precision is next to nothing, or its "
            "curvature overflows; fit it again."
        )
