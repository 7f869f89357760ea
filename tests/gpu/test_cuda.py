"""On a CUDA device: what a CPU finds, on every structure and method, and a model left as it was.

Skipped without such a device. Models are float64, so that only the order of sums differs between the two machines.
"""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from bench.grids import QUIET, TRAINING, config
from cli.task_scenes import bases, copies
from engine.support import CASES, close
from laplace_lora import AnswerTokens, LaplaceLoRA
from laplace_lora.bench import METHODS, bench
from laplace_lora.bench.lines import read_lines
from laplace_lora.methods.base import Subject
from laplace_lora.readouts import ClassLogits
from methods.subjects import Left, adapter_of, moved, retraining
from methods.test_swag import SWAG
from readouts.models import language_model
from readouts.support import fit
from tiny_models import MODELS, Batch, batches, random_examples

__all__ = ["bases", "copies"]

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TRAIN, TEST, HELD_OUT = (random_examples(n, seed=seed) for n, seed in ((7, 0), (5, 1), (9, 2)))
#: SWAG's own iterates are more than a training of seven rows has steps.
SHORT = {**METHODS, "swag": SWAG}
#: Methods whose random numbers come from the device's own generator while they train or drop out; and TFB, whose
#: numbers are the CPU's, but are taken along singular vectors that have another sign on another device.
OWN_DRAWS = ("mc_dropout", "swag", "blob", "blob_mean", "tfb")


def on_device(data: list[Batch]) -> list[Batch]:
    return [{name: value.to(DEVICE) for name, value in batch.items()} for batch in data]


def pair(kind: str) -> tuple[peft.PeftModel, peft.PeftModel]:
    """The same model on the CPU and on the device."""
    model = MODELS[kind]()
    return model, copy.deepcopy(model).to(DEVICE)


def same(left: LaplaceLoRA, right: LaplaceLoRA, batch: Batch, rtol: float = 1e-7) -> None:
    ours, its = (la.predict(batch) for la in (left, right))
    assert ours.mean.device.type == "cpu"
    assert its.mean.device.type == "cuda"
    for field in ("mean", "covariance", "probabilities", "total_entropy", "mutual_information"):
        close(getattr(its, field).cpu(), getattr(ours, field), rtol)
    assert math.isclose(left.log_marginal_likelihood(), right.log_marginal_likelihood(), rel_tol=rtol)


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize(("structure", "kfac"), CASES)
def test_a_posterior_is_the_cpus(kind: str, structure: str, kfac: str) -> None:
    here, there = (fit(model, None, batches(TRAIN, 3), structure=structure, kfac=kfac) for model in pair(kind))
    same(here, there, batches(TEST, 5)[0])
    for draw, other in zip(here.sample(2, seed=3), there.sample(2, seed=3), strict=True):
        assert draw.keys() == other.keys()


@pytest.mark.parametrize("fisher", ["exact", "rademacher"])
@pytest.mark.parametrize("rank", [None, 2])
def test_a_sketched_posterior_is_the_cpus(fisher: str, rank: int | None) -> None:
    """Sketches and signs come from generators on the CPU."""
    settings = {"fisher": fisher, "factor_rank": rank}
    here, there = (fit(model, None, batches(TRAIN, 3), **settings) for model in pair("bert"))
    same(here, there, batches(TEST, 5)[0])


@pytest.mark.parametrize("method", ["auto", "evidence", "validation"])
def test_a_tuned_prior_is_the_cpus(method: str) -> None:
    found = []
    for model in pair("bert"):
        la = fit(model, None, batches(TRAIN, 3))
        if method == "auto":
            la.tune_prior("auto", starting_point=moved(copy.deepcopy(model).cpu(), 1))
        else:
            la.tune_prior((method, batches(HELD_OUT, 4)) if method == "validation" else method)
        found.append(la)
    assert found[0].prior_precision == pytest.approx(found[1].prior_precision, rel=1e-5)
    same(*found, batches(TEST, 5)[0], rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama-head", "llama-tied-head", "gpt2"])
def test_answer_tokens(kind: str) -> None:
    model = language_model(kind)
    models = (model, copy.deepcopy(model).to(DEVICE))
    here, there = (fit(each, AnswerTokens([7, 11, 20]), batches(TRAIN, 3)) for each in models)
    same(here, there, batches(TEST, 5)[0])


@pytest.mark.parametrize("structure", ["kron", "exact", "low_rank"])
def test_a_posterior_goes_from_one_to_the_other(structure: str, tmp_path: Path) -> None:
    model, there = pair("bert")
    la = fit(there, None, on_device(batches(TRAIN, 3)), structure=structure)
    la.save_pretrained(tmp_path / "posterior")
    same(LaplaceLoRA.from_pretrained(model, tmp_path / "posterior"), la, batches(TEST, 5)[0])


def test_the_model_is_left_as_it_was() -> None:
    _, model = pair("bert")
    left = Left(model)
    state = torch.cuda.get_rng_state()
    la = fit(model, None, batches(TRAIN, 3))
    la.tune_prior("evidence")
    la.predict(batches(TEST, 5)[0])
    left.check()
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_answers_as_on_the_cpu(name: str) -> None:
    found = []
    for model in pair("bert"):
        given = [batches(rows, 3) for rows in (TRAIN, HELD_OUT, TEST)]
        states = [moved(copy.deepcopy(model).cpu(), seed) for seed in (1, 2, 3)]
        subject = Subject(
            *(model, ClassLogits(), given[0]),
            start=states[0],
            held_out=given[1],
            checkpoints=[*states[:2], adapter_of(model)],
            others=states[1:],
            retrain=retraining(model),
        )
        left, random = Left(model), torch.cuda.get_rng_state()
        found.append(SHORT[name].fit(subject).answer(given[2]))
        left.check()
        assert torch.equal(torch.cuda.get_rng_state(), random)
    here, there = (answers.probabilities.values for answers in found)
    assert np.isfinite(there).all()
    np.testing.assert_allclose(there.sum(axis=1), 1.0, rtol=0, atol=1e-6)
    if name not in OWN_DRAWS:
        np.testing.assert_allclose(there, here, rtol=0, atol=1e-5)


def test_a_grid(bases: dict[str, Path], copies: Path, tmp_path: Path) -> None:
    """Every method on tasks of classes and of options, twice: the second time from the cache, the same lines."""
    settings = config(
        *(bases["bert"], copies, tmp_path),
        tasks=("sst2", "openbookqa"),
        methods=tuple(METHODS),
        device="cuda",
        training=dataclasses.replace(TRAINING, batch_size=1),
    )
    bench(settings, QUIET)
    text = (tmp_path / "results.jsonl").read_text()
    lines = read_lines(tmp_path / "results.jsonl")
    assert {(line["task"], line["method"]) for line in lines} == {
        (task, method) for task in ("sst2", "openbookqa") for method in METHODS
    }
    for line in lines:
        assert line["protocol"]["device"] == "cuda"
        assert line["cost"]["peak_memory_bytes"] > 0
        assert all(math.isfinite(value) for value in line["figures"].values())
    bench(settings, QUIET)
    assert (tmp_path / "results.jsonl").read_text() == text
