"""From a batch to K logits: how the model is called, and which of its outputs are the answer."""

from laplace_lora.readouts.answer_tokens import AnswerTokens, answer_token_ids
from laplace_lora.readouts.base import Readout
from laplace_lora.readouts.class_logits import ClassLogits
from laplace_lora.readouts.inference import is_classifier, readout_of_data, readout_of_model
from laplace_lora.readouts.inputs import (
    LABEL_KEYS,
    is_causal,
    is_causal_type,
    label_names_of,
    prepare_inputs,
    split_labels,
)
from laplace_lora.readouts.language_head import target_probabilities
from laplace_lora.readouts.next_token import IGNORED, NextToken
from laplace_lora.readouts.option_scores import OptionScores, is_multiple_choice
from laplace_lora.readouts.pairwise_reward import PairwiseReward
from laplace_lora.readouts.rows import Draw, ModelRows, Places, Reading
from laplace_lora.readouts.scalar import Scalar, has_one_output

#: Readouts by the name that is saved with a posterior.
READOUTS: dict[str, type[Readout]] = {
    kind.name: kind for kind in (ClassLogits, AnswerTokens, OptionScores, NextToken, Scalar, PairwiseReward)
}

__all__ = [
    "IGNORED",
    "LABEL_KEYS",
    "READOUTS",
    "AnswerTokens",
    "ClassLogits",
    "Draw",
    "ModelRows",
    "NextToken",
    "OptionScores",
    "PairwiseReward",
    "Places",
    "Reading",
    "Readout",
    "Scalar",
    "answer_token_ids",
    "has_one_output",
    "is_causal",
    "is_causal_type",
    "is_classifier",
    "is_multiple_choice",
    "label_names_of",
    "prepare_inputs",
    "readout_of_data",
    "readout_of_model",
    "split_labels",
    "target_probabilities",
]
