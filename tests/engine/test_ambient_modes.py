"""What callers switch on around fit and predict: inference mode, no_grad and autocast."""

import pytest
import torch

from engine.support import close, fitted, setting
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
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


def test_an_error_midway_leaves_the_mode_as_it_was() -> None:
    model, train, test = setting("bert")
    la = fitted(model, train)
    with pytest.raises(LaplaceLoRAError), torch.inference_mode():
        la.tune_prior(("validation", [{key: v for key, v in collate(test).items() if key != "labels"}]))
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("structure", ["kron", "last_layer", "exact"])
@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_autocast_rounds_the_model_and_nothing_else(
    make: object, structure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(3, torch.float32)
    config = LaplaceConfig(structure=structure, progress=False)
    train, test = batches(random_examples(6), 3), collate(random_examples(4, seed=77))
    plain = LaplaceLoRA(model, config).fit(train).tune_prior("evidence").predict(test)
    seen = set()
    jacobian = SiteGradient.jacobian

    def spying(self: SiteGradient) -> torch.Tensor:
        found = jacobian(self)
        seen.add(found.dtype)
        return found

    monkeypatch.setattr(SiteGradient, "jacobian", spying)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = LaplaceLoRA(model, config).fit(train).tune_prior("evidence").predict(test)
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == torch.bfloat16
    assert seen == {torch.float32}
    close(rounded.covariance, plain.covariance, 0.1)
