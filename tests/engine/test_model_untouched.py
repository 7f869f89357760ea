"""Fitting, tuning, predicting and sampling leave the model and the random state exactly as they found them."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from torch import nn

from engine.support import STRUCTURES, close, fitted, setting
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from tiny_models import MODELS, Batch, batches, collate, random_examples, tiny_bert, tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def _found(model: nn.Module) -> dict[str, object]:
    """Record everything about a model, and about the process, that a library could disturb."""
    found: dict[str, object] = {
        "training": [module.training for module in model.modules()],
        "modules": [(name, type(module), id(module)) for name, module in model.named_modules()],
        "forwards": [(name, "forward" in vars(module)) for name, module in model.named_modules()],
        "config": model.config.to_dict() if hasattr(model, "config") else None,
        "grad enabled": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global state is what must not change
        "python": random.getstate(),
    }
    for kind in _HOOKS:
        found[kind] = [list(getattr(module, kind)) for module in model.modules()]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if tensor.grad is None else tensor.grad.clone()
        found[name] = (tensor.dtype, tensor.device, tensor.requires_grad, tensor.data_ptr(), id(tensor))
        found[name + " value"], found[name + " grad"] = tensor.detach().clone(), grad
    return found


def _assert_as_found(model: nn.Module, before: dict[str, object]) -> None:
    after = _found(model)
    assert after.keys() == before.keys()
    for key, value in before.items():
        same = torch.equal(after[key], value) if isinstance(value, torch.Tensor) else after[key] == value
        assert same, f"{key} changed"


def _in_odd_state(name: str, seed: int = 0) -> peft.PeftModel:
    """A model in training mode but for one layer, with gradients, a user's hook and one frozen factor."""
    model = MODELS[name](seed=seed)
    model.train()
    next(module for module in model.modules() if isinstance(module, nn.Embedding)).eval()
    model.get_base_model().register_forward_hook(lambda *_: None)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    ("structure", "fisher"),
    [(structure, "exact") for structure in STRUCTURES] + [("kron", "rademacher"), ("kron", "mc"), ("diag", "mc")],
)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_after_every_call(name: str, structure: str, fisher: str) -> None:
    model, train, test = _in_odd_state(name), random_examples(5), random_examples(3, seed=4)
    before = _found(model)
    la = fitted(model, train, structure=structure, fisher=fisher)
    _assert_as_found(model, before)
    la.tune_prior("evidence")
    la.tune_prior("validation", batches(test, 2))
    _assert_as_found(model, before)
    p = la.predict(collate(test))
    la.predict_dataset(batches(test, 2))
    la.log_marginal_likelihood()
    la.summary()
    la.sample(2, seed=1)
    _assert_as_found(model, before)
    # Dropout was off all the while, although the model was in training mode.
    calm = fitted(MODELS[name](), train, structure=structure, fisher=fisher)
    calm.tune_prior("evidence").tune_prior("validation", batches(test, 2))
    close(p.covariance, calm.predict(collate(test)).covariance, 1e-10)


class _BrokenError(Exception):
    """Raised on purpose, by the loader or by the model."""


class _Breaking:
    """Good batches and then an error, from some reading on."""

    def __init__(self, good: list[Batch], reading: int = 1) -> None:
        self.good, self.left = good, reading

    def __iter__(self) -> Iterator[Batch]:
        self.left -= 1
        yield from self.good
        if self.left <= 0:
            raise _BrokenError


def _break_model(model: nn.Module) -> None:
    """Make the fourth layer norm raise whenever a batch of two comes through, in the middle of the forward pass."""
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if len(inputs[0]) == 2:
            raise _BrokenError

    norms[3].register_forward_pre_hook(hook)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_after_an_error_of_the_loader(name: str, structure: str) -> None:
    model = _in_odd_state(name)
    good = batches(random_examples(6), 3)
    before = _found(model)
    la = fitted(model, random_examples(5, seed=9), structure=structure)
    for call in (la.predict_dataset, lambda loader: la.tune_prior("validation", loader), la.fit):
        with pytest.raises(_BrokenError):
            call(_Breaking(good))
        _assert_as_found(model, before)


def test_after_an_error_in_a_second_pass() -> None:
    model = _in_odd_state("bert")
    before = _found(model)
    la = LaplaceLoRA(model, LaplaceConfig(structure="ekfac", progress=False))
    with pytest.raises(_BrokenError):
        la.fit(_Breaking(batches(random_examples(6), 3), reading=2))
    _assert_as_found(model, before)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_after_an_error_inside_the_model(name: str, structure: str) -> None:
    model = _in_odd_state(name)
    _break_model(model)
    before = _found(model)
    with pytest.raises(_BrokenError):
        fitted(model, random_examples(5), size=3, structure=structure)
    la = fitted(model, random_examples(3), size=3, structure=structure)
    with pytest.raises(_BrokenError):
        la.predict(collate(random_examples(2)))
    _assert_as_found(model, before)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_after_an_error_in_a_backward_pass(structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, train, test = _in_odd_state("bert"), random_examples(5), random_examples(3, seed=4)
    la = fitted(model, train, structure="kron")
    before = _found(model)

    def broken(*_: object, **__: object) -> None:
        raise _BrokenError

    monkeypatch.setattr(torch.autograd, "grad", broken)
    monkeypatch.setattr(torch.autograd, "backward", broken)
    if structure == "last_layer":
        fitted(model, train, structure=structure).predict(collate(test))
    else:
        with pytest.raises(_BrokenError):
            fitted(model, train, structure=structure)
        with pytest.raises(_BrokenError):
            la.predict(collate(test))
    _assert_as_found(model, before)


def test_after_a_bad_batch() -> None:
    model, train = _in_odd_state("bert"), random_examples(4)
    before = _found(model)
    bad = collate(train)
    bad["input_ids"] = bad["input_ids"] + 10_000
    with pytest.raises((IndexError, LaplaceLoRAError)):
        fitted(model, train).fit([collate(train), bad])
    _assert_as_found(model, before)


def test_a_failed_fit_leaves_no_posterior_of_half_the_data() -> None:
    model, train, test = setting()
    la = fitted(model, train)
    whole = la.predict(collate(test)).covariance
    with pytest.raises(_BrokenError):
        la.fit(_Breaking(batches(random_examples(6, seed=9), 3)))
    try:
        after = la.predict(collate(test)).covariance
    except LaplaceLoRAError:
        return
    assert torch.equal(after, whole)


def test_inside_no_grad_and_inference_callers() -> None:
    model, train, test = setting()
    reference = fitted(model, train).predict(collate(test)).covariance
    batch, given = collate(test), batches(train, 4)
    for mode in (torch.no_grad, torch.inference_mode):
        la = LaplaceLoRA(model, LaplaceConfig(progress=False))
        with mode():
            la.fit(given)
            assert not torch.is_grad_enabled()
            covariance = la.predict(batch).covariance
        close(covariance.clone(), reference, 1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("build", [tiny_bert, tiny_llama])
def test_an_adapter_loaded_frozen(build: object, structure: str, tmp_path: Path) -> None:
    """``PeftModel.from_pretrained`` freezes every weight; the posterior is the same, and they stay frozen."""
    model, train, test = build(), random_examples(5), random_examples(3, seed=4)
    model.save_pretrained(tmp_path)
    base = build().unload()
    frozen = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    before = _found(frozen)
    la, reference = fitted(frozen, train, structure=structure), fitted(model, train, structure=structure)
    la.tune_prior("evidence")
    reference.tune_prior("evidence")
    close(la.predict(collate(test)).covariance, reference.predict(collate(test)).covariance, 1e-10)
    _assert_as_found(frozen, before)


def test_batches_are_not_changed() -> None:
    model, train, test = setting("llama")
    given = batches(train, 3, "left")
    copies = [{key: value.clone() for key, value in batch.items()} for batch in given]
    la = LaplaceLoRA(model)
    la.fit(given)
    la.predict(given[0])
    for batch, copy in zip(given, copies, strict=True):
        assert batch.keys() == copy.keys()
        assert all(torch.equal(batch[key], copy[key]) for key in batch)
    assert len(test) == 4
