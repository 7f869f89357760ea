"""Slabs of a few columns, so that the few rows of these tests are gone through in many of them."""

import pytest

from laplace_lora import streaming
from laplace_lora.posterior import row_products


@pytest.fixture(autouse=True)
def _small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SLAB_BYTES", 8 * 14 * 3)
    monkeypatch.setattr(row_products, "_PANEL", 5)
