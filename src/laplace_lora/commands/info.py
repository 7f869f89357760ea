"""``laplace-lora info``: what is in a saved posterior, without loading any model."""

from pathlib import Path

import torch

from laplace_lora.commands.settings import local_or_hub
from laplace_lora.persistence import describe, read_posterior


def info(directory: str | Path) -> str:
    """Describe a saved posterior in words.

    Args:
        directory: A folder, or the id of a repository on the Hugging Face hub.

    Returns:
        Several lines of text.
    """
    state, posterior, fitted = read_posterior(local_or_hub(str(directory)))
    precision = torch.tensor(state.prior_precision, dtype=torch.float64)
    text = describe(
        state.config,
        state.matrices,
        state.held_at_map,
        precision,
        state.tuned_by,
        fitted,
        posterior,
        state.readout,
        state.noise_variance,
        state.temperature,
        state.keeps_answers,
    )
    form = state.input_format
    lines = [
        text,
        f"  classes: {', '.join(form.label_names) if form.label_names else f'0 to {state.classes - 1}, without names'}",
        f"  template: {_shown(form.template)}",
        *([f"  second text: {_shown(form.pair_template)}"] if form.pair_template is not None else []),
        f"  at most {form.max_length or 'any number of'} tokens, padded on the {form.padding_side or 'right'}",
        f"  base model: {state.fingerprint.base_name or 'unnamed'} ({state.fingerprint.base_class}, "
        f"{state.fingerprint.base_dtype}); saved by laplace-lora {state.library_version}",
    ]
    return "\n".join(lines)


def _shown(template: str | None) -> str:
    return "not saved" if template is None else repr(template)[1:-1]
