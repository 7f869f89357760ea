"""The object that ``predict`` returns; the integrals behind it have tests of their own."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from laplace_lora import LaplaceLoRAError, Predictive

FIELDS = (
    "mean",
    "covariance",
    "probabilities",
    "map_probabilities",
    "total_entropy",
    "aleatoric_entropy",
    "mutual_information",
    "neglected_mass",
)


def _predictive(classes: int = 3, size: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> Predictive:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(size, classes, generator=generator, dtype=torch.float64)
    root = torch.randn(size, classes, classes, generator=generator, dtype=torch.float64)
    root = root - root.mean(1, keepdim=True)
    return Predictive.from_gaussian(mean.to(dtype), (root @ root.mT).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_fields(classes: int, dtype: torch.dtype) -> None:
    p = _predictive(classes, dtype=dtype)
    assert tuple(field.name for field in dataclasses.fields(p)) == FIELDS
    shapes = {name: tuple(getattr(p, name).shape) for name in FIELDS}
    assert shapes["covariance"] == (4, classes, classes)
    assert {shapes[name] for name in ("mean", "probabilities", "map_probabilities")} == {(4, classes)}
    assert {shapes[name] for name in FIELDS[4:]} == {(4,)}
    assert {getattr(p, name).dtype for name in FIELDS} == {torch.float64}
    assert len(p) == 4
    for name in ("probabilities", "map_probabilities"):
        assert (getattr(p, name) >= 0).all()
        torch.testing.assert_close(getattr(p, name).sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_quantities_follow_from_one_another() -> None:
    p = _predictive(4)
    torch.testing.assert_close(p.map_probabilities, p.mean.softmax(-1), rtol=0, atol=1e-15)
    entropy = -(p.probabilities * p.probabilities.log()).sum(-1)
    torch.testing.assert_close(p.total_entropy, entropy, rtol=1e-12, atol=0)
    torch.testing.assert_close(p.mutual_information, p.total_entropy - p.aleatoric_entropy, rtol=0, atol=1e-15)
    assert (p.mutual_information > 0).all()
    assert (p.total_entropy <= math.log(4)).all()
    assert torch.equal(p.prediction, p.probabilities.argmax(-1))
    assert torch.equal(p.confidence, p.probabilities.amax(-1))
    assert not p.prediction.is_floating_point()


def test_information_is_never_negative() -> None:
    mean = torch.tensor([[0.0, 0.0], [30.0, -30.0]])
    p = Predictive.from_gaussian(mean, torch.zeros(2, 2, 2))
    assert (p.mutual_information >= 0).all()
    assert p.mutual_information.max() < 1e-9
    torch.testing.assert_close(p.probabilities, p.map_probabilities, rtol=0, atol=1e-9)


def test_frozen() -> None:
    p = _predictive()
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.mean = torch.zeros(4, 3)  # type: ignore[misc]


def test_to_converts_every_tensor_and_leaves_the_original() -> None:
    p = _predictive()
    single = p.to(torch.float32)
    assert {getattr(single, name).dtype for name in FIELDS} == {torch.float32}
    assert {getattr(p, name).dtype for name in FIELDS} == {torch.float64}
    assert {getattr(p.to("meta"), name).device.type for name in FIELDS} == {"meta"}
    assert {getattr(p.to(device="cpu", dtype=torch.float16), name).dtype for name in FIELDS} == {torch.float16}


def test_numpy() -> None:
    p = _predictive()
    arrays = p.numpy()
    assert set(arrays) == {*FIELDS, "prediction", "confidence"}
    for name, array in arrays.items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, getattr(p, name).numpy())


def test_concatenate() -> None:
    parts = [_predictive(size=size, seed=size) for size in (3, 1, 2)]
    joined = Predictive.concatenate(parts)
    assert len(joined) == 6
    for name in FIELDS:
        assert torch.equal(getattr(joined, name), torch.cat([getattr(part, name) for part in parts]))
    assert torch.equal(Predictive.concatenate(parts[:1]).mean, parts[0].mean)


def test_nothing_to_concatenate_is_refused() -> None:
    with pytest.raises(LaplaceLoRAError, match=r"no examples.*check the data loader\.$"):
        Predictive.concatenate([])


def test_outputs_without_a_softmax_have_no_classes() -> None:
    mean, covariance = torch.zeros(3, 1), torch.ones(3, 1, 1)
    p = Predictive.of_outputs(mean, covariance)
    assert len(p) == 3
    assert torch.equal(p.mean, mean.double())
    assert torch.equal(p.covariance, covariance.double())
    assert p.probabilities.shape == (3, 0)
    for name in ("prediction", "confidence"):
        with pytest.raises(LaplaceLoRAError, match=r"real outputs have no classes; read mean and covariance\.$"):
            getattr(p, name)
    assert set(p.numpy()) == set(FIELDS)
    assert len(Predictive.concatenate([p, p])) == 6
    assert p.to(torch.float32).mean.dtype == torch.float32


def test_a_common_shift_of_the_logits_changes_no_probability() -> None:
    p = _predictive(3)
    # Shift every example's logits by a constant, and add a random shift common to its classes.
    shifted = Predictive.from_gaussian(p.mean + 5.0, p.covariance + 2.0)
    torch.testing.assert_close(shifted.probabilities, p.probabilities, rtol=0, atol=1e-6)
    torch.testing.assert_close(shifted.aleatoric_entropy, p.aleatoric_entropy, rtol=0, atol=1e-6)
