"""Find a posterior's folder: on disk, or in a repository on the Hugging Face hub."""

from pathlib import Path

from laplace_lora.errors import PosteriorFileError
from laplace_lora.persistence.files import CONFIG_NAME, TENSORS_NAME


def resolve_directory(source: str | Path) -> Path:
    """Return the folder that holds a posterior's two files.

    Args:
        source: A folder, or the id of a hub repository (``owner/name``), whose two files are downloaded
            into the hub's cache.

    Returns:
        The folder.

    Raises:
        PosteriorFileError: There is no such folder and no such repository within reach.
    """
    path = Path(source)
    if path.is_dir():
        return path
    # A path that was meant as one must not become a question to a server.
    if isinstance(source, Path) or path.is_absolute() or len(path.parts) != 2:
        raise PosteriorFileError(f"{source} is not a folder; give the folder that save_pretrained wrote.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), allow_patterns=[CONFIG_NAME, TENSORS_NAME]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise PosteriorFileError(
            f"{source} is neither a folder nor a repository that could be downloaded ({reason}); check the name."
        ) from error
