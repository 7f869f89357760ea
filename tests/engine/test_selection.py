"""A posterior over some of the adapter's layers: the others are as if they had never been trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import oracles
from engine.counting import Passes, counted_model
from engine.support import close, fitted, setting
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from laplace_lora.adapters import AdapterSites, Site, select_sites
from tiny_models import MODELS, Batch, collate, random_examples

#: Settings, and what the modules' names that they leave hold.
SELECTIONS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"target_modules": ["query"]}, ("query",)),
    ({"target_modules": ("value", "classifier")}, ("value", "classifier")),
    ({"target_modules": ["attention.self.query"]}, ("query",)),
    ({"layers_to_transform": [0]}, ("layer.0.", "classifier")),
    ({"layers_to_transform": [-1]}, ("layer.1.", "classifier")),
    ({"layers_to_transform": [0, -1]}, ("layer.", "classifier")),
    ({"layers_to_transform": (1,), "target_modules": ["query"]}, ("layer.1.attention.self.query",)),
]


def _expected(parts: tuple[str, ...], structure: str, delta: float) -> tuple[Tensor, list[str]]:
    """Return the dense posterior's covariance over the chosen blocks alone, and the others' names."""
    model, train, test = setting()
    among = [block for block in oracles.blocks(model) if any(part in block.module for part in parts)]
    held = [block.name for block in oracles.blocks(model) if block not in among]
    ggn = oracles.dense_ggn(model, train, among)
    if structure == "diag":
        ggn = ggn.diagonal().diag()
    covariance = torch.linalg.inv(ggn + delta * torch.eye(len(ggn), dtype=torch.float64))
    j = torch.stack([oracles.joint_jacobian(model, example, among) for example in test])
    j = j - j.mean(1, keepdim=True)
    return j @ covariance @ j.mT, held


@pytest.mark.parametrize("structure", ["exact", "diag", "low_rank", "kron_low_rank"])
@pytest.mark.parametrize(("settings", "parts"), SELECTIONS)
def test_covariance_is_that_of_the_chosen_weights(
    settings: dict[str, Any], parts: tuple[str, ...], structure: str
) -> None:
    model, train, test = setting()
    la = fitted(model, train, structure=structure, prior_precision=0.7, **settings)
    expected, held = _expected(parts, structure, 0.7)
    close(la.predict(collate(test)).covariance, expected)
    assert all(name in la.summary() for name in held)


class _Lowest:
    """Notes which layers' outputs the backward pass reaches."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.reached: set[int] = set()
        layers = model.get_base_model().bert.encoder.layer
        for position, layer in enumerate(layers):
            layer.register_forward_hook(lambda _, __, output, position=position: self._note(position, output))

    def _note(self, position: int, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda _: self.reached.add(position))


@pytest.mark.parametrize(("layers", "reached"), [(None, {0, 1}), ([1], {1}), ([0], {0, 1})])
def test_the_backward_pass_stops_below_the_lowest_layer(
    layers: list[int] | None, reached: set[int], passes: Passes
) -> None:
    """The output of the first layer depends on nothing that is chosen, unless that layer is."""
    model = counted_model(MODELS["bert"](3), passes)
    watch = _Lowest(model)
    la = fitted(model, random_examples(4, 3), layers_to_transform=layers)
    assert watch.reached == reached
    watch.reached.clear()
    passes.take()
    la.predict(collate(random_examples(2, 3, seed=8)))
    assert passes.take() == (1, 2)
    assert watch.reached == reached


def test_samples_leave_the_rest_as_it_was_trained() -> None:
    model, train, _ = setting()
    la = fitted(model, train, target_modules=["value"])
    first, second = la.sample(2, seed=1)
    moved = {key for key in first if not torch.equal(first[key], second[key])}
    assert moved == {key for key in first if ".value." in key}


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, train, test = setting()
    la = fitted(model, train, target_modules=["query"], layers_to_transform=[-1])
    la.save_pretrained(tmp_path)
    again = LaplaceLoRA.from_pretrained(model, tmp_path)
    assert again.config == la.config
    assert again.config.layers_to_transform == (-1,)
    batch: Batch = collate(test)
    assert torch.equal(again.predict(batch).covariance, la.predict(batch).covariance)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": ["gate"]},
            r"no trained module is named 'gate'; .* has classifier, query, value\.",
        ),
        ({"target_modules": ["uery"]}, r"no trained module is named 'uery'"),
        ({"layers_to_transform": [2]}, r"the adapter has no layer 2; it has 0, 1, and negative"),
        ({"layers_to_transform": [-3]}, r"no layer -3; it has 0, 1, and negative positions count from the last\."),
        ({"target_modules": ["query"], "structure": "last_layer"}, r"structure='last_layer' needs a trained head"),
    ],
)
def test_what_is_not_there_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=message):
        LaplaceLoRA(setting()[0], LaplaceConfig(**settings))


def _site(module: str, trained_in_full: bool = False) -> Site:
    weight = torch.nn.Parameter(torch.zeros(1, 1))
    return Site(f"{module}.weight", module, (), weight, trained_in_full=trained_in_full)


ODD = AdapterSites(
    "default",
    (
        _site("base_model.model.enc.layer.1.query"),
        _site("base_model.model.enc.layer.2.query"),
        _site("base_model.model.enc.layer.2.dense"),
        _site("base_model.model.classifier.0", trained_in_full=True),
        _site("base_model.model.classifier.3.dense", trained_in_full=True),
    ),
    (),
)


@pytest.mark.parametrize(
    ("names", "layers", "left"),
    [
        (None, [1], [0, 3, 4]),
        (None, [-1], [1, 2, 3, 4]),
        (["classifier"], None, [3, 4]),
        (["query", "classifier"], [2], [1, 3, 4]),
        (["dense"], None, [2, 4]),
        (["classifier.0"], None, [3]),
    ],
)
def test_heads_of_several_layers_and_layers_without_an_adapter(
    names: list[str] | None, layers: list[int] | None, left: list[int]
) -> None:
    found = select_sites(ODD, names, layers)
    assert found.sites == tuple(ODD.sites[i] for i in left)
    assert found.held_at_map == tuple(site.name for i, site in enumerate(ODD.sites) if i not in left)


@pytest.mark.parametrize(
    ("names", "layers", "message"),
    [
        (None, [0], r"the adapter has no layer 0; it has 1, 2, and"),
        (["dense"], [1], r"the adapter has no layer 1 with dense; it has 2, and"),
        (["nothing"], None, r"the adapter has classifier\.0, classifier\.3\.dense, dense, query\."),
    ],
)
def test_layers_that_carry_no_adapter_are_refused(
    names: list[str] | None, layers: list[int] | None, message: str
) -> None:
    with pytest.raises(LaplaceLoRAError, match=message):
        select_sites(ODD, names, layers)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_modules", "query"),
        ("target_modules", []),
        ("target_modules", [1]),
        ("layers_to_transform", 1),
        ("layers_to_transform", [True]),
        ("layers_to_transform", ["1"]),
    ],
)
def test_what_is_no_list_is_refused(name: str, value: object) -> None:
    with pytest.raises(LaplaceLoRAError, match=rf"^{name}=.* is no list of (names of modules|positions of layers);"):
        LaplaceConfig(**{name: value})  # type: ignore[arg-type]
