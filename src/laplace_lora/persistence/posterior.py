"""A saved posterior, read back and checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from laplace_lora.curvature import FitResult
from laplace_lora.errors import LaplaceLoRAError, PosteriorFileError, first_line
from laplace_lora.persistence.checks import check_tensors
from laplace_lora.persistence.files import TENSORS_NAME, read_description, read_tensors, tensors_bytes
from laplace_lora.persistence.hub import resolve_directory
from laplace_lora.persistence.state import SavedState
from laplace_lora.posterior import Posterior
from laplace_lora.readouts import READOUTS, Readout
from laplace_lora.structures import STRUCTURES

#: Among the saved tensors, beside the posterior's own: what training inputs are known by again.
TRAINING_INPUTS = "training_inputs"
#: The same of held-out inputs that prior, temperature or noise were chosen on, where there were any.
TUNING_INPUTS = "tuning_inputs"


def read_posterior(source: str | Path, device: torch.device | str = "cpu") -> tuple[SavedState, Posterior, FitResult]:
    """Read both files of a posterior.

    Where the structure allows it, tensors that take more than its ``memory_limit_bytes`` stay in the file, which is
    mapped into memory and must not be changed in place while they are in use (it may be deleted, or saved anew). It is
    read twice here: for its checksum, and for numbers that are none.

    Args:
        source: A folder, or the id of a repository on the Hugging Face hub.
        device: Where the Gaussian is to live.

    Returns:
        The description; the Gaussian; and what the pass over the training data left.

    Raises:
        PosteriorFileError: A file is missing, damaged or of another version.
    """
    folder = resolve_directory(source)
    document = read_description(folder)
    state = SavedState.from_description(document)
    kind = STRUCTURES[state.config.structure].posterior
    mapped = kind.streams and tensors_bytes(folder) > state.config.memory_limit_bytes
    tensors = read_tensors(folder, document, mapped)
    inputs = tensors.pop(TRAINING_INPUTS, None)
    if inputs is None:
        raise PosteriorFileError(f"{folder / TENSORS_NAME} lacks {TRAINING_INPUTS!r}; fit and save it again.")
    if inputs.dtype != torch.int64 or tuple(inputs.shape) != (state.examples,):
        raise PosteriorFileError(f"{folder / TENSORS_NAME}: {TRAINING_INPUTS!r} is malformed; fit and save it again.")
    tuned_on = tensors.pop(TUNING_INPUTS, None)
    if tuned_on is not None and (tuned_on.dtype != torch.int64 or tuned_on.dim() != 1):
        raise PosteriorFileError(f"{folder / TENSORS_NAME}: {TUNING_INPUTS!r} is malformed; fit and save it again.")
    check_tensors(kind, state.matrices, tensors, str(folder / TENSORS_NAME))
    if mapped:
        posterior = kind.from_mapped(state.matrices, tensors)
    else:
        posterior = kind.from_tensors(state.matrices, {name: tensor.to(device) for name, tensor in tensors.items()})
    posterior.assign_groups(state.groups().index)
    fitted = FitResult(
        state.examples, state.classes, state.log_likelihood, state.accuracy, inputs, state.targets, tuned_on
    )
    return state, posterior, fitted


def restored_readout(name: str, settings: Mapping[str, Any]) -> Readout:
    """Rebuild a saved readout.

    Args:
        name: What it is saved as.
        settings: Its settings.

    Returns:
        The readout.

    Raises:
        PosteriorFileError: It is not known here, or its settings are malformed.
    """
    if name not in READOUTS:
        raise PosteriorFileError(f"readout {name[:40]!r} is not known here; install a newer laplace-lora.")
    try:
        return READOUTS[name](**settings)
    except (LaplaceLoRAError, TypeError, ValueError) as error:
        raise PosteriorFileError(
            f"posterior_config.json: the settings of readout {name} are malformed ({first_line(error)}); fit and save "
            "the posterior again."
        ) from None
