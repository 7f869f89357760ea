"""What callers switch on around fit and predict: inference mode, no_grad and autocast."""

import pytest
import torch

from engine.support import close, fitted, setting
from laplace_lora import LaplaceLoRA
from laplace_lora.jacobians import SiteGradient
from tiny_models import batches, collate, random_examples, tiny_bert, tiny_llama


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_batches_made_without_gradients(name: str, mode: type) -> None:
    """Tensors made under inference_mode take no part in a backward pass, and a padding mask is such a tensor."""
    model, train, test = setting(name)
    la = fitted(model, train, size=3)
    expected = la.predict(collate(test)).covariance
    with mode():
        again = fitted(model, [{key: value.clone() for key, value in e.items()} for e in train], size=3)
        made = again.predict({key: value.clone() for key, value in collate(test).items()})
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert torch.equal(made.covariance, expected)
    assert made.probabilities.requires_grad is False


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_autocast_rounds_the_model_and_nothing_else(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(3, torch.float32)
    train, test = batches(random_examples(6), 3), collate(random_examples(4, seed=77))
    plain = LaplaceLoRA(model, fitted(model, random_examples(6)).config).fit(train).predict(test)
    seen = set()
    jacobian = SiteGradient.jacobian

    def spying(self: SiteGradient) -> torch.Tensor:
        found = jacobian(self)
        seen.add(found.dtype)
        return found

    monkeypatch.setattr(SiteGradient, "jacobian", spying)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        la = LaplaceLoRA(model, fitted(model, random_examples(6)).config).fit(train)
        rounded = la.predict(test)
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == torch.bfloat16
    assert seen == {torch.float32}
    close(rounded.covariance, plain.covariance, 0.1)
