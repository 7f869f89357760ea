"""Predictions as JSON objects, one per example."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from laplace_lora.commands.inputs import OpenAdapter
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.regression import half_width
from laplace_lora.predictive import Predictive


def records(predictive: Predictive, opened: OpenAdapter, partial: bool = False) -> Iterator[dict[str, Any]]:
    """Write out predictions of classes, options or preferences.

    Args:
        predictive: Of B examples.
        opened: Says what classes are called, and whether they are texts of a pair.
        partial: Whether to say what classes held fixed amount to (``neglected_mass``).

    Yields:
        Per example: ``label`` (the likeliest class: its name, or its index where there are no names), its
        ``confidence``, ``probabilities`` and ``map_probabilities`` of all classes in the order of the logits (of an
        example's own options alone), and in nats ``total_entropy``, ``aleatoric_entropy`` and ``mutual_information``
        (the epistemic part). Of pairs also the ``rewards`` with their standard deviations ``reward_sd``.
    """
    pairs = opened.readout is not None and opened.readout.name == "pairwise_reward"
    names = opened.shown_names if pairs else opened.label_names
    values = predictive.to("cpu")
    for i in range(len(values)):
        predicted = int(values.prediction[i])
        present = torch.isfinite(values.mean[i])
        record = {
            "label": predicted if names is None else names[predicted],
            "confidence": float(values.confidence[i]),
            "probabilities": values.probabilities[i][present].tolist(),
            "total_entropy": float(values.total_entropy[i]),
            "aleatoric_entropy": float(values.aleatoric_entropy[i]),
            "mutual_information": float(values.mutual_information[i]),
            "map_probabilities": values.map_probabilities[i][present].tolist(),
        }
        if pairs:
            record["rewards"] = values.mean[i].tolist()
        if pairs and values.covariance.shape[-1]:
            record["reward_sd"] = values.covariance[i].diagonal().clamp(min=0.0).sqrt().tolist()
        if partial:
            record["neglected_mass"] = float(values.neglected_mass[i])
        yield record


def real_records(predictive: Predictive, noise_variance: float | None) -> Iterator[dict[str, Any]]:
    """Write out predictions of real numbers.

    Args:
        predictive: Of B examples, with one output.
        noise_variance: Of what is observed; None for outputs that are not, as rewards.

    Yields:
        Per example: ``mean``, ``sd`` (of the output: what more data would lower) and, with noise, ``predictive_sd`` and
        the central ``interval_95`` of what will be observed.
    """
    means, variances = predictive.mean[:, 0].tolist(), predictive.covariance[:, 0, 0].clamp(min=0.0).tolist()
    for mean, variance in zip(means, variances, strict=True):
        record: dict[str, Any] = {"mean": mean, "sd": variance**0.5}
        if noise_variance is not None:
            wide = (variance + noise_variance) ** 0.5
            reach = half_width(0.95) * wide
            record |= {"predictive_sd": wide, "interval_95": [mean - reach, mean + reach]}
        yield record


def text_records(predictive: Predictive, counts: Tensor) -> Iterator[dict[str, Any]]:
    """Write out log-probabilities of texts.

    Args:
        predictive: Of B texts.
        counts: (B,) tokens that count.

    Yields:
        Per text: ``log_probability`` in nats, its standard deviation ``sd``, and ``tokens``.
    """
    means, variances = predictive.mean[:, 0].tolist(), predictive.covariance[:, 0, 0].clamp(min=0.0).tolist()
    for mean, variance, tokens in zip(means, variances, counts.tolist(), strict=True):
        yield {"log_probability": mean, "sd": variance**0.5, "tokens": tokens}


def require_numbers(predictive: Predictive) -> None:
    """Refuse predictions that are no numbers; they are no JSON either.

    Args:
        predictive: Of B examples.

    Raises:
        LaplaceLoRAError: One is NaN or infinite.
    """
    values = (predictive.probabilities, predictive.map_probabilities, predictive.mutual_information)
    if not all(bool(torch.isfinite(value).all()) for value in (*values, predictive.covariance)):
        raise LaplaceLoRAError(
            "the posterior makes predictions that are NaN or infinite: its prior precision is next to nothing, or its "
            "curvature overflows; fit it again."
        )
