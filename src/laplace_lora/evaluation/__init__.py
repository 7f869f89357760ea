"""Measuring predictions and reporting what was found."""

from laplace_lora.evaluation.bootstrap import Interval
from laplace_lora.evaluation.comparison import Comparison, Scores, compare, score
from laplace_lora.evaluation.examples import Predictions
from laplace_lora.evaluation.ood import Detection, OutOfDistribution, ood_scores
from laplace_lora.evaluation.picture import write_picture
from laplace_lora.evaluation.report import write_report
from laplace_lora.evaluation.tables import terminal_table
from laplace_lora.evaluation.verdict import verdict

__all__ = [
    "Comparison",
    "Detection",
    "Interval",
    "OutOfDistribution",
    "Predictions",
    "Scores",
    "compare",
    "ood_scores",
    "score",
    "terminal_table",
    "verdict",
    "write_picture",
    "write_report",
]
