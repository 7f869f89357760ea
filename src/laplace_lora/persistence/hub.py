"""Find a folder of adapter or posterior files: on disk, or in a repository on the Hugging Face hub."""

import os
from pathlib import Path

from laplace_lora.errors import AdapterFileError, LaplaceLoRAError, PosteriorFileError, first_line
from laplace_lora.persistence.files import CONFIG_NAME, TENSORS_NAME

#: What ``laplace-lora train`` leaves beside an adapter: its settings, and how inputs were made.
TRAINING_NAME = "training_config.json"
#: The adapter before its first step, under the keys of its weights; ``train`` writes it.
STARTING_POINT_NAME = "starting_point.safetensors"
#: Rules for acting on a posterior's confidence; ``evaluate`` writes it.
DECISIONS_NAME = "decisions.json"

_POSTERIOR_FILES = (CONFIG_NAME, TENSORS_NAME, DECISIONS_NAME)
# Never the pickled formats.
_ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    *_POSTERIOR_FILES,
    TRAINING_NAME,
    STARTING_POINT_NAME,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "*.model",
    "merges.txt",
    "*.jinja",
)


def resolve_directory(source: str | Path) -> Path:
    """Return the folder that holds a posterior's files.

    Args:
        source: A folder, or the id of a hub repository (``owner/name``), whose files are downloaded
            into the hub's cache.

    Returns:
        The folder.

    Raises:
        PosteriorFileError: There is no such folder and no such repository within reach.
    """
    return _resolve(source, _POSTERIOR_FILES, PosteriorFileError)


def download_adapter(source: str | Path) -> Path:
    """Return the folder that holds an adapter, its tokenizer and, if there is one, its posterior.

    Args:
        source: A folder, or the id of a hub repository (``owner/name``).

    Returns:
        The folder.

    Raises:
        AdapterFileError: There is no such folder and no such repository within reach.
    """
    return _resolve(source, _ADAPTER_FILES, AdapterFileError)


def _resolve(source: str | Path, files: tuple[str, ...], error_class: type[LaplaceLoRAError]) -> Path:
    path = Path(source)
    if os.path.isdir(path):  # Path.is_dir raises on names that are too long
        return path
    # A path that was meant as one must not become a question to a server.
    if isinstance(source, Path) or path.is_absolute() or len(path.parts) != 2 or source.startswith("."):
        raise error_class(f"{source} is not a folder; give the folder that save_pretrained wrote.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise error_class(
            f"{source} is neither a folder nor a repository that could be downloaded ({reason}); check the name."
        ) from error
