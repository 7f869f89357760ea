"""Skips what needs a quantiser that is not installed."""

import pytest


def require(quantization: str) -> None:
    """Skip a test, or a whole module at import, without the package of a quantiser."""
    package = "torchao" if quantization.startswith("torchao") else "bitsandbytes"
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'laplace-lora[quantized]'")
