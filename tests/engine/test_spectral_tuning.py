"""The spectrum of a validation set against recomputation at every prior that is tried."""

import dataclasses
from typing import Any

import pytest
import torch

from engine.counting import Passes, counted_model
from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.prior import SCALES, mean_nll
from tiny_models import MODELS, batches, random_examples

CASES = [
    ("llama", 2, {"structure": "kron"}),
    ("bert", 4, {"structure": "kron", "factor_rank": 2}),
    ("bert", 3, {"structure": "kron", "prior_groups": "matrix"}),
    ("llama", 3, {"structure": "diag", "prior_groups": "module"}),
    ("gpt2", 3, {"structure": "exact"}),
    ("bert", 3, {"structure": "last_layer"}),
]


def _at(la: LaplaceLoRA, precision: torch.Tensor) -> LaplaceLoRA:
    """Return the same posterior at another prior."""
    there = LaplaceLoRA(la.model, la.config)
    there._fitted = dataclasses.replace(la._state, precision=precision)
    return there


@pytest.mark.parametrize(("name", "classes", "options"), CASES)
def test_every_prior_is_as_recomputed(name: str, classes: int, options: dict[str, Any], passes: Passes) -> None:
    """Within 1e-3 in NLL at every grid point; the model is run once."""
    model = counted_model(MODELS[name](classes), passes)
    config = LaplaceConfig(progress=False, **options)
    la = LaplaceLoRA(model, config).fit(batches(random_examples(24, classes), 8))
    held_out = batches(random_examples(18, classes, seed=9), 7)
    state = la._state
    passes.take()
    mean, spectrum, labels = state.linearised(model).spectrum(held_out, state.covered.reader, None)
    backward = 0 if options["structure"] == "last_layer" else classes - 1
    assert passes.take() == (len(held_out), len(held_out) * backward)
    for scale in SCALES[::3].tolist():
        precision = state.precision * scale
        direct = _at(la, precision).predict_dataset(held_out)
        chosen = direct.probabilities.gather(1, labels[:, None])
        expected = float(-chosen.log().mean())
        found = mean_nll(state.covered.reader.predictive(mean, spectrum.covariance(precision), None), labels)
        assert abs(found - expected) < 1e-3
    assert torch.equal(labels, torch.cat([batch["labels"] for batch in held_out]))


def test_groups_move_by_themselves() -> None:
    """A precision of one group leaves the others' contributions alone, as recomputation says."""
    model = MODELS["bert"](3)
    config = LaplaceConfig(progress=False, structure="kron", prior_groups="module")
    la = LaplaceLoRA(model, config).fit(batches(random_examples(24), 8))
    held_out = batches(random_examples(10, seed=9), 5)
    state = la._state
    _, spectrum, _ = state.linearised(model).spectrum(held_out, state.covered.reader, None)
    for group in range(len(state.precision)):
        precision = state.precision.clone()
        precision[group] *= 1e4
        direct, found = _at(la, precision).predict_dataset(held_out).covariance, spectrum.covariance(precision)
        size = direct.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
        assert ((found - direct).abs() <= 2.31e-3 * size).all()
