"""Quantisers are optional: without them these tests are left out, by name."""

import logging
from collections.abc import Iterator

import pytest

from laplace_lora.quiet import quiet_transformers


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # bitsandbytes says in every layer that it casts; what is said of it in a test is what the test is about.
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with quiet_transformers():
        yield
    logger.setLevel(level)
