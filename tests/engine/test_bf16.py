"""A bfloat16 base model: statistics in float32 or better, results near those of the same weights in float32."""

import copy
import math

import peft
import pytest
import torch

from engine.support import STRUCTURES, fitted
from tiny_models import MODELS, collate, random_examples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def _pair(name: str) -> tuple[peft.PeftModel, peft.PeftModel]:
    """Return a bf16 model and another with exactly its weights, in float32."""
    half = MODELS[name](dtype=torch.bfloat16)
    return half, copy.deepcopy(half).float()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_near_float32(name: str, structure: str) -> None:
    half, single = _pair(name)
    train, test = random_examples(6), collate(random_examples(8, seed=4))
    results = [fitted(model, train, structure=structure, prior_precision=0.5) for model in (half, single)]
    p, reference = (la.predict(test) for la in results)
    # bf16 keeps 8 bits: single logits are off by a few per cent, and so may be every product of two gradients.
    scale = reference.mean.abs().max()
    assert (p.mean - reference.mean).abs().max() < 0.05 * scale
    for row, expected in zip(p.covariance, reference.covariance, strict=True):
        assert (row - expected).norm() < 0.15 * expected.norm()
    difference = float(results[0].log_marginal_likelihood()) - float(results[1].log_marginal_likelihood())
    assert abs(difference) < 0.02 * abs(float(results[1].log_marginal_likelihood()))


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_dtypes(name: str, structure: str) -> None:
    half, single = _pair(name)
    dtypes = {key: value.dtype for key, value in half.state_dict().items()}
    assert torch.bfloat16 in dtypes.values()
    train, test = random_examples(4), collate(random_examples(3, seed=4))
    for model in (half, single):
        la = fitted(model, train, structure=structure)
        p = la.predict(test)
        for field in ("mean", "covariance", "probabilities", "total_entropy", "mutual_information"):
            value = getattr(p, field)
            assert value.dtype in (torch.float32, torch.float64), field
            assert value.isfinite().all()
        assert p.numpy()["covariance"].dtype.name in ("float32", "float64")
        for value in la.sample(1)[0].values():
            assert value.dtype in (torch.float32, torch.float64)
    assert {key: value.dtype for key, value in half.state_dict().items()} == dtypes


@pytest.mark.parametrize("structure", ["kron", "diag", "last_layer"])
def test_many_small_terms_add_up(structure: str) -> None:
    """A sum kept in bf16 stops growing at 256 equal terms; 330 must count as 330."""
    half = MODELS["bert"](num_labels=2, dtype=torch.bfloat16, targets=["value"])
    examples, test = random_examples(1, 2), collate(random_examples(3, 2, seed=4))
    count, delta = 330, 0.5
    one = fitted(half, examples, structure=structure, prior_precision=delta)
    many = fitted(half, examples * count, size=1, structure=structure, prior_precision=count * delta)
    ratio = one.predict(test).covariance / (count * many.predict(test).covariance)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_tuning_agrees(name: str) -> None:
    half, single = _pair(name)
    train = random_examples(6)
    tuned = [fitted(model, train) for model in (half, single)]
    for la in tuned:
        la.tune_prior("evidence")
    left, right = (math.log(la.prior_precision) for la in tuned)
    assert abs(left - right) < 0.05
