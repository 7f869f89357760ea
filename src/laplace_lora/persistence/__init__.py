"""Posteriors on disk: two versioned, checksummed files, written whole or not at all."""

from laplace_lora.persistence.decisions import decisions_document, read_decisions
from laplace_lora.persistence.files import CONFIG_NAME, TENSORS_NAME, read_description, read_tensors, write_posterior
from laplace_lora.persistence.hub import (
    DECISIONS_NAME,
    STARTING_POINT_NAME,
    TRAINING_NAME,
    download_adapter,
    resolve_directory,
)
from laplace_lora.persistence.posterior import TRAINING_INPUTS, TUNING_INPUTS, read_posterior, restored_readout
from laplace_lora.persistence.state import InputFormat, SavedState, input_format_from
from laplace_lora.persistence.summary import describe

__all__ = [
    "CONFIG_NAME",
    "DECISIONS_NAME",
    "TENSORS_NAME",
    "TRAINING_INPUTS",
    "STARTING_POINT_NAME",
    "TRAINING_NAME",
    "TUNING_INPUTS",
    "InputFormat",
    "SavedState",
    "decisions_document",
    "describe",
    "download_adapter",
    "input_format_from",
    "read_decisions",
    "read_description",
    "read_posterior",
    "read_tensors",
    "resolve_directory",
    "restored_readout",
    "write_posterior",
]
