"""Measuring predictions and reporting what was found."""

from laplace_lora.evaluation.bootstrap import Interval
from laplace_lora.evaluation.comparison import Comparison, Scores, compare, score
from laplace_lora.evaluation.examples import Predictions
from laplace_lora.evaluation.ood import Detection, OutOfDistribution, ood_scores
from laplace_lora.evaluation.outputs import Logits, Probabilities, WrongKindError
from laplace_lora.evaluation.picture import write_picture
from laplace_lora.evaluation.report import write_report
from laplace_lora.evaluation.saved import OUTPUTS_FILE, Outputs, SavedOutputs, load_outputs, save_outputs
from laplace_lora.evaluation.side_by_side import (
    DataSet,
    Line,
    html_side_by_side,
    lines_of,
    markdown_table,
    terminal_side_by_side,
)
from laplace_lora.evaluation.tables import terminal_table
from laplace_lora.evaluation.verdict import verdict

__all__ = [
    "Comparison",
    "DataSet",
    "Detection",
    "Interval",
    "Line",
    "Logits",
    "OUTPUTS_FILE",
    "OutOfDistribution",
    "Outputs",
    "Predictions",
    "Probabilities",
    "SavedOutputs",
    "Scores",
    "WrongKindError",
    "compare",
    "html_side_by_side",
    "lines_of",
    "load_outputs",
    "markdown_table",
    "ood_scores",
    "save_outputs",
    "score",
    "terminal_side_by_side",
    "terminal_table",
    "verdict",
    "write_picture",
    "write_report",
]
