"""Kinds of model that adapters are put on, and the transformers classes that load them."""

from typing import Any, Literal

from transformers import AutoModelForCausalLM, AutoModelForMultipleChoice, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from laplace_lora.adapters.files import SavedAdapter
from laplace_lora.errors import AdapterFileError

ModelKind = Literal["classifier", "language_model", "multiple_choice"]

FACTORIES: dict[ModelKind, Any] = {
    "classifier": AutoModelForSequenceClassification,
    "language_model": AutoModelForCausalLM,
    "multiple_choice": AutoModelForMultipleChoice,
}
PURPOSES: dict[ModelKind, str] = {
    "classifier": "sequence classification",
    "language_model": "causal language modelling",
    "multiple_choice": "multiple choice",
}
_BY_TASK: dict[str, ModelKind] = {"SEQ_CLS": "classifier", "CAUSAL_LM": "language_model"}
_BY_CLASS: dict[ModelKind, dict[str, Any]] = {
    "classifier": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "multiple_choice": MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "language_model": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


def saved_kind(saved: SavedAdapter) -> ModelKind | None:
    """Read off an adapter's settings what kind of model it is for.

    Args:
        saved: The adapter's files.

    Returns:
        By the task type or, where there is none, by the base's class that PEFT noted; None where neither is there.

    Raises:
        AdapterFileError: It is for another kind.
    """
    task = saved.config.get("task_type")
    if task is not None:
        if task not in _BY_TASK:
            raise AdapterFileError(
                f"the adapter in {saved.folder} is of task type {str(task)[:40]}; sequence classification (SEQ_CLS), "
                "causal language models (CAUSAL_LM) and, without a task type, multiple choice are handled: use one."
            )
        return _BY_TASK[task]
    noted = saved.config.get("auto_mapping")
    name = noted.get("base_model_class") if isinstance(noted, dict) else None
    return next((kind for kind, names in _BY_CLASS.items() if name in names.values()), None)
