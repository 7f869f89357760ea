"""SWAG: moments against NumPy over recorded iterates, draws against their covariance, and what is left."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from laplace_lora import LaplaceLoRAError
from laplace_lora.methods.base import State, Subject
from laplace_lora.methods.swag import LEAST_VARIANCE, Swag, draw
from laplace_lora.readouts import OptionScores
from laplace_lora.retraining import Retraining
from methods.subjects import SETTINGS, TEST, Left, adapter_of, information, plain_loop, retraining, subject
from readouts.models import option_batches, option_examples, tiny_multiple_choice
from tiny_models import batches, tiny_bert

DATA = batches(TEST, 3)
# 4 epochs of 3 steps.
SWAG = Swag(rate=0.25, epochs=4, iterates=5, rank=3, samples=4)


class Recorder(TrainerCallback):
    """Keeps every step's adapter and rate."""

    def __init__(self, model: Any) -> None:
        self.model, self.steps, self.rates = model, [], []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(adapter_of(self.model))
        self.rates.append(kwargs["lr_scheduler"].get_last_lr())


class Watched:
    """Trains as a Retraining does, with more callbacks, and counts."""

    def __init__(self, inner: Retraining, *more: TrainerCallback) -> None:
        self.inner, self.more, self.calls = inner, more, []
        self.learning_rate = inner.learning_rate

    def __call__(self, *, callbacks: Any = (), **settings: Any) -> dict[str, Tensor]:
        self.calls.append(settings)
        return self.inner(callbacks=[*callbacks, *self.more], **settings)


def kept(made: dict[str, State]) -> Any:
    def remember(name: str, make: Any) -> State:
        if name not in made:
            made[name] = make()
        return made[name]

    return remember


def fitted_moments(model: Any, method: Swag = SWAG, **more: Any) -> State:
    made: dict[str, State] = {}
    method.fit(subject(model, retrain=retraining(model), remember=kept(made), **more))
    (moments,) = made.values()
    return moments


@pytest.mark.parametrize("rank", [3, 9])
def test_moments_are_those_of_the_iterates(rank: int) -> None:
    model, made = tiny_bert(), {}
    recorder = Recorder(model)
    watched = Watched(retraining(model), recorder)
    given = subject(model, retrain=watched, remember=kept(made), seed=6)
    fitted = dataclasses.replace(SWAG, rank=rank).fit(given)
    (moments,) = made.values()
    assert watched.calls == [{"trained": True, "epochs": 4, "constant_rate": 0.25 * SETTINGS.learning_rate, "seed": 6}]
    assert recorder.rates == [[0.0025, 0.0025]] * 12
    assert fitted.found == {"learning_rate": 0.0025}
    assert given.stopwatch.seconds["train"] > 0.0
    chosen = [math.ceil(index * 12 / 5) - 1 for index in range(1, 6)]
    assert chosen == [2, 4, 7, 9, 11]
    own = adapter_of(model)
    assert any(key.endswith("classifier.weight") for key in own)
    assert set(moments) == {f"{kind}.{key}" for kind in ("mean", "variance", "deviations") for key in own}
    for key in own:
        values = np.stack([recorder.steps[step][key].numpy() for step in chosen])
        until = np.stack([values[: index + 1].mean(axis=0) for index in range(5)])
        np.testing.assert_allclose(moments[f"mean.{key}"], values.mean(axis=0), rtol=0, atol=1e-15)
        np.testing.assert_allclose(moments[f"variance.{key}"], values.var(axis=0), rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(moments[f"deviations.{key}"], (values - until)[-rank:], rtol=0, atol=1e-15)
        assert len(moments[f"deviations.{key}"]) == min(rank, 5)
        assert moments[f"variance.{key}"].min() >= LEAST_VARIANCE
        assert values.std(axis=0).max() > 1e-4


def test_moments_of_float32_weights_are_in_float64() -> None:
    moments = fitted_moments(tiny_bert(dtype=torch.float32))
    kinds = {name.split(".")[0]: value.dtype for name, value in moments.items()}
    assert kinds == {"mean": torch.float64, "variance": torch.float64, "deviations": torch.float32}
    assert {value.dtype for state in draw(moments, 1, 0, 0.5) for value in state.values()} == {torch.float32}


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_draws_have_the_covariance_that_is_stated(scale: float) -> None:
    moments, draws = fitted_moments(tiny_bert()), 8000
    keys = sorted(adapter_of(tiny_bert()))
    # Some weights of every matrix, and a variance and deviations of like size, so that both parts can be seen.
    mean, variance, deviations, found = [], [], [], []
    states = draw(moments, draws, 3, scale)
    for key in keys:
        mean.append(moments[f"mean.{key}"].flatten()[:3].numpy())
        variance.append(moments[f"variance.{key}"].flatten()[:3].numpy())
        deviations.append(moments[f"deviations.{key}"].flatten(1)[:, :3].numpy())
        found.append(torch.stack([state[key].flatten()[:3] for state in states]).numpy())
    m, v, d, x = (np.concatenate(part, axis=-1) for part in (mean, variance, deviations, found))
    covariance = scale * (np.diag(v) + d.T @ d / (SWAG.rank - 1))
    width = np.sqrt(np.diag(covariance))
    assert (np.abs(x.mean(axis=0) - m) < 5.0 * width / np.sqrt(draws)).all()
    # Of Gaussians, an empirical covariance has the variance (S_ii S_jj + S_ij^2) / n.
    error = np.sqrt((np.outer(width, width) ** 2 + covariance**2) / draws)
    assert (np.abs((x - m).T @ (x - m) / draws - covariance) < 5.0 * error).all()
    correlation = np.abs(covariance / np.outer(width, width))
    assert np.median(correlation[~np.eye(len(m), dtype=bool)]) > 0.1


def test_it_is_a_plain_loop_over_the_draws(tmp_path: Path) -> None:
    model, made = tiny_bert(), {}
    watched = Watched(retraining(model))
    given = subject(model, retrain=watched, remember=kept(made), seed=6)
    fitted = SWAG.fit(given)
    found = fitted.answer(DATA)
    ((name, moments),) = made.items()
    members = plain_loop(model, draw(moments, 4, 6, 0.5), DATA)
    np.testing.assert_allclose(found.probabilities.values, members.mean(axis=0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.mutual_information, information(members), rtol=0, atol=1e-10)
    assert np.abs(members - members[0]).max() > 1e-3
    assert name == "swag rate=0.25 epochs=4 iterates=5 rank=3 seed=6"
    # A file gives the same answers, in whatever order it holds the moments; other draws need no other training.
    save_file(dict(moments), tmp_path / "swag.safetensors")
    loaded = load_file(tmp_path / "swag.safetensors")
    again = dataclasses.replace(given, remember=lambda name, make: dict(reversed(loaded.items())))
    np.testing.assert_array_equal(SWAG.fit(again).answer(DATA).probabilities.values, found.probabilities.values)
    dataclasses.replace(SWAG, samples=2, scale=1.0).fit(given)
    assert len(watched.calls) == 1
    assert fitted.stored_bytes == sum(value.nbytes for value in loaded.values())
    # Mean, variance and three deviations, all of eight bytes here.
    assert fitted.stored_bytes == 5 * 8 * sum(value.numel() for value in adapter_of(model).values())


def test_without_width_it_is_the_mean() -> None:
    model = tiny_bert()
    moments = fitted_moments(model)
    given = subject(model, retrain=retraining(model), remember=lambda name, make: moments)
    found = dataclasses.replace(SWAG, scale=1e-24).fit(given).answer(DATA)
    mean = {key: moments[f"mean.{key}"] for key in adapter_of(model)}
    np.testing.assert_allclose(found.probabilities.values, plain_loop(model, [mean], DATA)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_bit_by_bit(training: bool) -> None:
    model = tiny_bert(dtype=torch.float32).train(training)
    left = Left(model)
    SWAG.fit(subject(model, retrain=retraining(model))).answer(DATA)
    left.check()


def test_the_model_is_left_bit_by_bit_after_a_failure() -> None:
    model = tiny_bert()

    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7:
                raise RuntimeError("in the middle")

    given = subject(model, retrain=Watched(retraining(model), Fails()))
    left = Left(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        SWAG.fit(given)
    left.check()


def test_examples_with_fewer_options() -> None:
    data = option_batches(option_examples((4, 2, 3, 1, 2)), 2, side="right", completion=False)
    model = tiny_multiple_choice()
    moments: dict[str, Tensor] = {}
    for key, value in adapter_of(model).items():
        moments[f"mean.{key}"], moments[f"variance.{key}"] = value, torch.full_like(value, 0.01)
        moments[f"deviations.{key}"] = torch.zeros(2, *value.shape, dtype=value.dtype)
    given = Subject(model, OptionScores(), data, retrain=retraining(model), remember=lambda name, make: moments)
    found = SWAG.fit(given).answer(data)
    present = np.arange(4) < np.array([[4], [2], [3], [1], [2]])
    assert ((found.probabilities.values > 0.0) == present).all()
    assert found.mutual_information[3] == 0.0
    assert found.mutual_information[0] > 0.0


def test_refusals() -> None:
    model = tiny_bert()
    left = Left(model)
    with pytest.raises(LaplaceLoRAError, match=r"swag trains an adapter of its own; give"):
        SWAG.fit(subject(model))
    with pytest.raises(LaplaceLoRAError, match=r"swag collects 40 iterates.* 15 steps; give more epochs"):
        Swag().fit(subject(model, retrain=retraining(model)))
    for wrong in ({"rank": 1}, {"iterates": 1}, {"epochs": 0}, {"samples": 0}, {"rate": 0.0}, {"scale": -1.0}):
        with pytest.raises(LaplaceLoRAError, match=r"cannot be fitted; give rank and iterates"):
            dataclasses.replace(SWAG, **wrong).fit(subject(model, retrain=retraining(model)))
    high = dataclasses.replace(SETTINGS, learning_rate=1e200)
    with pytest.raises(LaplaceLoRAError, match=r"swag's training diverged.*give a lower rate\.$"):
        SWAG.fit(subject(model, retrain=retraining(model, high)))
    left.check()
    assert Swag.trains
    assert Swag().settings() == {"rate": 0.5, "epochs": 5, "iterates": 40, "rank": 20, "scale": 0.5, "samples": 10}
