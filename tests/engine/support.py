"""What the engine's tests share: cached models and oracles, and fitting in one call."""

import functools
from collections.abc import Mapping, Sequence

import peft
import torch
from torch import Tensor

import oracles
from laplace_lora import ClassLogits, LaplaceConfig, LaplaceLoRA
from tiny_models import MODELS, Example, batches, random_examples

# Every structure with every rule that it knows: (structure, kfac).
CASES = [
    ("kron", "fitted"),
    ("kron", "expand"),
    ("kron", "reduce"),
    ("kron", "official"),
    ("ekfac", "fitted"),
    ("ekfac", "expand"),
    ("diag", "fitted"),
    ("exact", "fitted"),
    ("low_rank", "fitted"),
    ("kron_low_rank", "fitted"),
    ("isotropic", "fitted"),
    ("last_layer", "fitted"),
    ("last_layer", "expand"),
    ("last_layer", "reduce"),
]
STRUCTURES = ["kron", "ekfac", "diag", "exact", "low_rank", "kron_low_rank", "isotropic", "last_layer"]

# Changes to a tiny model that put LoRA on other kinds of layer: name -> (model, settings).
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "bert": ("bert", {}),
    "llama": ("llama", {}),
    "gpt2": ("gpt2", {}),
    # The pooler sees one vector per example, not a sequence.
    "bert-all-linear": ("bert", {"targets": "all-linear"}),
    "llama-all-linear": ("llama", {"targets": "all-linear"}),
    # lora_B with a bias of its own.
    "bert-lora-bias": ("bert", {"lora_bias": True}),
}


@functools.cache
def setting(name: str = "bert", num_labels: int = 3) -> tuple[peft.PeftModel, list[Example], list[Example]]:
    """Return a tiny model, six training and four test examples. Shared: never change them."""
    kind, options = VARIANTS[name]
    model = MODELS[kind](num_labels, **options)
    return model, random_examples(6, num_labels), random_examples(4, num_labels, seed=77)


@functools.cache
def oracle(
    name: str = "bert",
    num_labels: int = 3,
    structure: str = "kron",
    kfac: str = "fitted",
    include_head: bool = True,
) -> oracles.DensePosterior:
    """Return the dense posterior of :func:`setting`."""
    model, train, _ = setting(name, num_labels)
    return oracles.dense_posterior(model, train, structure, kfac, include_head)


@functools.cache
def _test_jacobians(name: str, num_labels: int, structure: str, include_head: bool) -> Tensor:
    model, _, test = setting(name, num_labels)
    among = oracle(name, num_labels, structure, "fitted", include_head).blocks
    return torch.stack([oracles.joint_jacobian(model, example, among) for example in test])


def expected_covariance(
    deltas: oracles.Deltas,
    name: str = "bert",
    num_labels: int = 3,
    structure: str = "kron",
    kfac: str = "fitted",
    include_head: bool = True,
) -> Tensor:
    """Return the oracle's covariance of the centred logits of the test examples, (4, K, K)."""
    j = _test_jacobians(name, num_labels, structure, include_head)
    j = j - j.mean(1, keepdim=True)
    return j @ oracle(name, num_labels, structure, kfac, include_head).covariance(deltas) @ j.mT


def fitted(
    model: peft.PeftModel, examples: Sequence[Example], *, size: int = 4, side: str = "right", **settings: object
) -> LaplaceLoRA:
    """Fit a posterior without a progress bar, on batches of ``size``."""
    la = LaplaceLoRA(model, LaplaceConfig(**{"progress": False, **settings}), readout=ClassLogits())
    return la.fit(batches(examples, size, side))


def spread(among: Sequence[oracles.Block], kind: str) -> tuple[dict[str, float], dict[str, float]]:
    """Choose clearly different prior precisions for every group.

    Args:
        among: The posterior's blocks.
        kind: ``module`` or ``matrix``.

    Returns:
        The precisions by group, as the configuration takes them, and by block, as the oracle does.
    """
    groups = oracles.prior_groups(among, kind)
    names = list(dict.fromkeys(groups.values()))
    by_group = {group: 0.3 * 1.7**index for index, group in enumerate(names)}
    return by_group, {block: by_group[group] for block, group in groups.items()}


def by_block(among: Sequence[oracles.Block], kind: str, precision: float | Mapping[str, float]) -> dict[str, float]:
    """Spread a posterior's ``prior_precision`` (one number or one per group) over its blocks."""
    groups = oracles.prior_groups(among, kind)
    if isinstance(precision, Mapping):
        assert set(precision) == set(groups.values())
        return {block: precision[group] for block, group in groups.items()}
    return dict.fromkeys(groups, float(precision))


def close(left: Tensor, right: Tensor, rtol: float = 1e-8) -> None:
    """Assert equality relative to the largest expected entry."""
    assert left.shape == right.shape
    error = float((left.double() - right.double()).abs().max() / right.abs().max())
    assert error <= rtol, f"relative error {error:.2e}, allowed {rtol:.0e}"
