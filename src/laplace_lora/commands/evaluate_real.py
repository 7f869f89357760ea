"""Evaluating predictions of real numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from laplace_lora.commands.inputs import warn_of_cuts
from laplace_lora.commands.output import whole_files
from laplace_lora.commands.prepared import Prepared, write_json, write_lines
from laplace_lora.commands.records import real_records
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation.figures import Figures, figures_table, measure
from laplace_lora.evaluation.plain_report import plain_report
from laplace_lora.evaluation.regression import DESCRIPTIONS, coverage_curve, gaussian_measures
from laplace_lora.predictive import Predictive
from laplace_lora.tuning import squared_error


def evaluate_real(ready: Prepared) -> tuple[Figures, str]:
    """Measure the trained adapter, with the noise that its training residuals show, and the posterior.

    Args:
        ready: Adapter, posterior and data.

    Returns:
        The figures, and a table for a terminal.

    Raises:
        LaplaceLoRAError: The posterior was fitted without labels.
    """
    la, config = ready.la, ready.config
    if la.training is None or la.training.log_likelihood is None:
        raise LaplaceLoRAError(
            "the posterior was fitted without labels, so that the trained adapter's own noise is not known; fit it "
            "again with labels."
        )
    predictive, seconds, _ = ready.evaluated()
    targets = np.array([float(example.label or 0.0) for example in ready.data])
    mean = predictive.mean[:, 0].numpy()
    assert la.noise_variance is not None
    # Maximum likelihood on the training data: what somebody with the adapter alone would take.
    plain_noise = squared_error(la.training, la.config.noise_variance) / la.training.examples
    variances = {
        "map": np.full_like(mean, max(plain_noise, 1e-12)),
        "laplace": predictive.covariance[:, 0, 0].numpy() + la.noise_variance,
    }
    figures = measure({name: gaussian_measures(mean, variance, targets) for name, variance in variances.items()})
    warn_of_cuts(ready.encoder, ready.console)
    noise = {"map": plain_noise, "laplace": la.noise_variance}
    report = plain_report(
        figures,
        DESCRIPTIONS,
        title="Intervals before and after a Laplace posterior",
        subtitle=ready.subtitle,
        curves={name: coverage_curve(mean, variance, targets) for name, variance in variances.items()},
        caption="Share of targets inside central intervals: on the diagonal, intervals hold as often as they promise.",
        axes=("nominal coverage", "observed coverage"),
        data=ready.data_set,
        details=ready.details(seconds, [("Noise variance", f"{la.noise_variance:.4g}")]),
    )
    with whole_files(config.out) as folder:
        write_json(folder / "metrics.json", ready.document(figures.to_dict(), seconds, noise_variance=noise))
        write_lines(folder / "predictions.jsonl", _records(ready, predictive, targets))
        (folder / "report.html").write_text(report, encoding="utf-8")
    return figures, figures_table(figures, DESCRIPTIONS)


def _records(ready: Prepared, predictive: Predictive, targets: Any) -> Iterator[dict[str, Any]]:
    found = real_records(predictive, ready.la.noise_variance)
    for example, target, record in zip(ready.data, targets.tolist(), found, strict=True):
        yield {"label": target, **record, "text": example.shown}
