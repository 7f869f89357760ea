"""Models that change a layer's output in place: the gradient is that of what they compute."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from laplace_lora import LaplaceConfig, LaplaceLoRA
from tiny_models import batches, random_examples, tiny_bert


def _doubling(change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Build a model that doubles what its lora_B layers put out, after everything else that listens to them."""
    model = tiny_bert()
    layers = [module for name, module in model.named_modules() if name.endswith("lora_B.default")]

    def listen_last(*_: object) -> None:
        for layer in layers:
            handle = layer.register_forward_hook(lambda module, args, output: change(output))
            handles.append(handle)

    handles: list[torch.utils.hooks.RemovableHandle] = []

    def stop(*_: object) -> None:
        while handles:
            handles.pop().remove()

    model.register_forward_pre_hook(listen_last)
    model.register_forward_hook(stop)
    return model


def test_an_output_changed_in_place() -> None:
    train, test = random_examples(5), random_examples(3, seed=9)
    found = []
    for change in (lambda output: output * 2.0, lambda output: output.mul_(2.0)):
        la = LaplaceLoRA(_doubling(change), LaplaceConfig(progress=False)).fit(batches(train, 3))
        found.append(la.predict(batches(test, 3)[0]))
    torch.testing.assert_close(found[1].mean, found[0].mean, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found[1].covariance, found[0].covariance, rtol=1e-12, atol=0.0)
