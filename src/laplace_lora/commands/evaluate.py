"""``laplace-lora evaluate``: the trained adapter and the posterior on labelled data."""

import dataclasses
from collections.abc import Mapping

from laplace_lora.commands.console import Console
from laplace_lora.commands.decisions import require_place
from laplace_lora.commands.evaluate_classes import evaluate_classes
from laplace_lora.commands.evaluate_real import evaluate_real
from laplace_lora.commands.evaluate_texts import evaluate_texts
from laplace_lora.commands.prepared import EvaluateConfig, Prepared
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import Comparison, OutOfDistribution
from laplace_lora.evaluation.figures import Figures

__all__ = ["EvaluateConfig", "Evaluation", "evaluate"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    Attributes:
        comparison: All methods' metrics.
        text: What the figures are from, verdict and tables for a terminal.
        ood: Detection of other data, by their name.
    """

    comparison: Comparison | Figures
    text: str
    ood: Mapping[str, OutOfDistribution] = dataclasses.field(default_factory=dict)


def evaluate(config: EvaluateConfig, console: Console) -> Evaluation:
    """Measure an adapter before and after its posterior, and write a report.

    Args:
        config: Settings.
        console: Takes messages.

    Returns:
        The figures.
    """
    require_place(config)
    ready = Prepared.of(config, console)
    likelihood = ready.la.readout.likelihood
    _refuse_unused(config, likelihood)
    if likelihood in ("gaussian", "tokens"):
        figures, text = evaluate_texts(ready) if likelihood == "tokens" else evaluate_real(ready)
        found = Evaluation(figures, f"{ready.heading}\n\n{text}")
    else:
        classes = evaluate_classes(ready)
        found = Evaluation(classes.comparison, f"{ready.heading}\n\n{classes.text}", classes.ood)
    console.say("saved", f"report in {config.out / 'report.html'}", out=str(config.out))
    return found


def _refuse_unused(config: EvaluateConfig, likelihood: str) -> None:
    if config.samples is not None and likelihood != "tokens":
        raise LaplaceLoRAError("--samples is for the tokens of texts (next-token); leave it out.")
    options = {
        "--validation": config.validation,
        "--ood": config.ood or None,
        "--target-risk": config.target_risk,
        "--coverage": config.coverage,
    }
    for option, value in options.items():
        if value is not None and likelihood in ("gaussian", "tokens"):
            raise LaplaceLoRAError(
                f"{option} is for predictions of classes, which this adapter does not make; leave it out."
            )
