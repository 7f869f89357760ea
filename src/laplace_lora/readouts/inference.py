"""Which readout a model and its data call for, where there is only one."""

from collections.abc import Mapping

from torch import Tensor, nn

from laplace_lora.adapters import task_type
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.readouts.base import Readout
from laplace_lora.readouts.class_logits import ClassLogits
from laplace_lora.readouts.inputs import is_causal
from laplace_lora.readouts.next_token import NextToken
from laplace_lora.readouts.option_scores import OptionScores, is_multiple_choice
from laplace_lora.readouts.pairwise_reward import PairwiseReward, has_pairs
from laplace_lora.readouts.scalar import Scalar, has_one_output


def readout_of_model(model: nn.Module, likelihood: str) -> Readout | None:
    """Infer the readout from the model alone.

    Args:
        model: The PEFT model.
        likelihood: As configured.

    Returns:
        The readout, or None where it depends on the data.
    """
    if is_multiple_choice(model):
        return OptionScores()
    task = task_type(model)
    causal = task == "CAUSAL_LM" or (task is None and is_causal(model) and not is_classifier(model))
    if is_classifier(model) and has_one_output(model):
        return None if likelihood == "categorical" else Scalar()
    return None if causal else ClassLogits()


def readout_of_data(model: nn.Module, batch: Mapping[str, Tensor], labels: Tensor | None) -> Readout:
    """Infer the readout from the first batch.

    Args:
        model: The PEFT model, for which :func:`readout_of_model` gave None.
        batch: Model inputs.
        labels: Its labels, or None.

    Returns:
        The readout.

    Raises:
        LaplaceLoRAError: Several would do.
    """
    tokens = batch.get("input_ids")
    if is_classifier(model):
        if has_pairs(batch):
            return PairwiseReward()
        if labels is not None:
            return Scalar()
        raise LaplaceLoRAError(
            "a model with one output and data without labels may be a reward model or a regression; give "
            "readout=PairwiseReward() or readout=Scalar()."
        )
    if tokens is not None and tokens.dim() == 3:
        return OptionScores()
    if tokens is not None and labels is not None and labels.shape == tokens.shape:
        return NextToken()
    raise LaplaceLoRAError(
        "a causal language model with one label per example can be read in several ways; give the tokens of the "
        "answers, readout=AnswerTokens(token_ids) or AnswerTokens.of_words(tokenizer, words)."
    )


def is_classifier(model: nn.Module) -> bool:
    """Say whether a model was loaded with ``AutoModelForSequenceClassification``.

    Args:
        model: The PEFT model, or its base.

    Returns:
        Whether it has a classification head.
    """
    base = getattr(model, "get_base_model", lambda: model)()
    return type(base).__name__.endswith("ForSequenceClassification")
