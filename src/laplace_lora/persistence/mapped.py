"""A safetensors file as tensors that stay in the file."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from laplace_lora.errors import PosteriorFileError
from laplace_lora.streaming import mapped_bytes, section

# As the format names them; a posterior has no others.
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64}


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file into memory, to be read only.

    The library's own lazy reading maps pages that count as the process's own to be, and so refuses files larger than
    the machine's memory.

    Args:
        path: The file; a malformed one raises ``SafetensorError``.

    Returns:
        Names to tensors, on the host.

    Raises:
        PosteriorFileError: A dtype is not one that posteriors have.
    """
    with safe_open(path, framework="pt"):
        pass  # the header is sound: offsets, shapes and dtypes go together and fill the file
    with path.open("rb") as file:
        data = mapped_bytes(file)
    length = int.from_bytes(data[:8].numpy().tobytes(), "little")
    header = json.loads(data[8 : 8 + length].numpy().tobytes())
    header.pop("__metadata__", None)
    unknown = [name for name, entry in header.items() if entry["dtype"] not in _DTYPES]
    if unknown:
        raise PosteriorFileError(f"{path}: {unknown[0]} has an unexpected dtype; fit and save the posterior again.")
    return {
        name: section(data, 8 + length + entry["data_offsets"][0], entry["shape"], _DTYPES[entry["dtype"]])
        for name, entry in header.items()
    }
