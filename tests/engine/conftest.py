"""Fixtures of the engine's tests."""

import pytest
import torch

from engine.counting import Passes


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Count every call of the autograd engine, whichever function leads there."""
    counted = Passes()

    def counting(function: object) -> object:
        def call(*args: object, **kwargs: object) -> object:
            assert not kwargs.get("is_grads_batched"), "a batched call hides how many passes it makes"
            counted.backward += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch.autograd, "grad", counting(torch.autograd.grad))
    monkeypatch.setattr(torch.autograd, "backward", counting(torch.autograd.backward))
    return counted
