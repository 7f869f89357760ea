"""QLoRA as people train it, on the CPU: a few steps of AdamW on a 4-bit base, then a posterior."""

import peft
import pytest
import torch

from quantised.needed import require
from quantised.support import (
    CLASSES,
    adapted,
    assert_equal,
    dequantised,
    figures,
    fitted,
    load_base,
    lora_config,
    training_batches,
)
from tiny_models import collate, random_examples


def _train(model: peft.PeftModel, steps: int = 12) -> list[float]:
    """Take steps on one set of batches; return the loss of every step."""
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        for batch in training_batches():
            loss = model(**batch).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("quantization", ["nf4", "int8", "torchao-int8"])
def test_train_then_fit(quantization: str) -> None:
    require(quantization)
    torch.manual_seed(0)
    base = peft.prepare_model_for_kbit_training(
        load_base("llama", quantization), gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model = peft.get_peft_model(base, lora_config("llama"))
    losses = _train(model)
    assert losses[-1] < 0.5 * losses[0]
    model.eval()
    # Activations rounded to 8 bits: see test_int8_activations.py.
    bounds = (0.08, 0.2) if quantization == "int8" else (2e-5, 2e-5)
    assert_equal(figures(model, "llama"), figures(dequantised(model), "llama"), *bounds)
    la = fitted(model, "llama")
    assert la.train_accuracy == 1.0
    p = la.predict(collate(random_examples(4, CLASSES, seed=9)))
    assert (p.mutual_information > 0).all()


def test_training_goes_on_after_fit() -> None:
    """Gradients of the adapter are what they were before."""
    require("nf4")
    model = adapted("llama", "nf4").train()

    def gradients() -> dict[str, torch.Tensor]:
        torch.manual_seed(5)  # dropout
        model.zero_grad()
        model(**training_batches()[0]).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    fitted(model, "llama").predict(training_batches()[0])
    after = gradients()
    assert before.keys() == after.keys()
    assert any(".lora_A." in name for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
