"""Fixtures of the readouts' tests."""

from engine.conftest import passes

__all__ = ["passes"]
