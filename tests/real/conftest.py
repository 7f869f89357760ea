"""Passes are counted as in the engine's tests."""

from engine.conftest import passes

__all__ = ["passes"]
