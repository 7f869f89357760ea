"""A whole small grid: results are those of the verbs, and every run ends in the same lines."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.grids import FEW, QUIET, config, timeless
from cli.folders import run
from cli.task_scenes import bases, copies, run_well
from laplace_lora.bench import BENCH_PRESETS, METHODS, BenchConfig, bench
from laplace_lora.bench.lines import read_lines
from laplace_lora.bench.settings import OTHER_SEEDS
from laplace_lora.evaluation import load_outputs

__all__ = ["bases", "copies"]


def probabilities(folder: Path, method: str) -> Any:
    return load_outputs(folder / "outputs.safetensors").data.probabilities[method].values


@pytest.fixture(scope="module")
def measured(bases: dict[str, Path], copies: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    bench(config(bases["bert"], copies, out, tasks=("sst2", "openbookqa"), all_checkpoints=True), QUIET)
    return out


def test_every_cell_has_its_line(measured: Path) -> None:
    lines = read_lines(measured / "results.jsonl")
    found = [(line["task"], line["method"], line["checkpoint"]) for line in lines]
    expected = []
    for task in ("sst2", "openbookqa"):
        for method in FEW:
            along = ["checkpoint-4", "checkpoint-8"] if method in ("map", "laplace") else []
            expected += [(task, method, name) for name in [*along, "last"]]
    assert found == expected
    for line in lines:
        assert line["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert line["training"]["seed"] == 0
        assert line["training"]["learning_rate"] == 5e-3
        assert line["own_split"]
        assert line["total_steps"] == (9 if line["method"] == "temperature" else 12)
        assert line["cost"]["seconds"]["train"] > 0.0
        assert line["cost"]["predict_per_row"] > 0.0
        assert line["cost"]["machine"]["cores"] >= 1
    assert {line["rows"]["train"] for line in lines if line["method"] == "temperature"} == {12}
    assert {line["rows"]["train"] for line in lines if line["method"] == "map"} == {15}


def test_the_figures_are_those_of_evaluate(measured: Path, copies: Path, tmp_path: Path) -> None:
    """MAP and Laplace, made again by fit and evaluate from the cache's adapter."""
    lines = {line["method"]: line for line in read_lines(measured / "results.jsonl") if line["task"] == "sst2"}
    made = json.loads((measured / "cache" / "results" / lines["map"]["key"] / "entry.json").read_text())["made_from"]
    adapters = [path.parent for path in (measured / "cache" / "adapters").glob("*/entry.json")]
    (adapter,) = (p for p in adapters if json.loads((p / "entry.json").read_text())["made_from"] == made["adapter"])
    options = ("--data-dir", copies, "--batch-size", 4, "--quiet")
    run_well("fit", "--adapter", adapter / "adapter", "--data", "sst2", "--out", tmp_path / "posterior", *options)
    run_well(
        *("evaluate", "--adapter", adapter / "adapter", "--posterior", tmp_path / "posterior", "--data", "sst2"),
        *("--out", tmp_path / "report", *options),
    )
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())["methods"]
    for name in ("map", "laplace"):
        for figure, value in lines[name]["figures"].items():
            assert value == pytest.approx(metrics[name][figure], abs=1e-6), (name, figure)


def test_an_ensemble_is_the_mean_of_three_trainings(measured: Path, bases: dict[str, Path], copies: Path) -> None:
    """Its members are the adapters of the seeds that it says, each measured by itself as MAP."""
    lines = read_lines(measured / "results.jsonl")
    (line,) = (line for line in lines if line["task"] == "sst2" and line["method"] == "deep_ensemble")
    kept = measured / "cache" / "results"
    found = probabilities(kept / line["key"], "deep_ensemble")
    seeds = (0, OTHER_SEEDS, 2 * OTHER_SEEDS)
    changes = {"methods": ("map",), "seeds": seeds, "ood": {}, "cache": measured / "cache"}
    alone = bench(config(bases["bert"], copies, measured / "alone", **changes), QUIET)
    members = [
        load_outputs(kept / one["key"] / "outputs.safetensors").data.probabilities["map"].values for one in alone
    ]
    np.testing.assert_allclose(found, np.mean(members, axis=0), rtol=0, atol=1e-7)
    assert not np.allclose(members[0], members[1])
    trained = [one["cost"]["seconds"]["train"] for one in alone]
    assert line["cost"]["seconds"]["train"] == pytest.approx(sum(trained))


def test_other_data(measured: Path) -> None:
    for line in read_lines(measured / "results.jsonl"):
        if line["task"] == "openbookqa":
            assert line["ood"] == {}
            continue
        assert set(line["ood"]) == {"rte", "mrpc"}
        assert "entailment" in line["ood"]["rte"]["labels_ignored"]
        known = {"confidence", "entropy"} | ({"mutual_information"} if line["method"] in FEW[2:] else set())
        assert set(line["ood"]["rte"]["detection"]) == known


def test_tables_and_page(measured: Path) -> None:
    text = (measured / "tables.md").read_text()
    assert all(
        f"## {title}" in text for title in ("Accuracy (%)", "ECE (%), 15 bins", "NLL (nats)", "What methods cost")
    )
    assert r"\toprule" in (measured / "tables.tex").read_text()
    page = (measured / "report.html").read_text()
    assert "Along the training" in page
    assert page.count("<svg") == page.count("</svg>") == 2 * (len(FEW) + 1) + 2 * 3
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_second_run_does_nothing_again(measured: Path, bases: dict[str, Path], copies: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (measured / "cache").glob("*/*/entry.json")}
    old = (measured / "results.jsonl").read_text()
    bench(config(bases["bert"], copies, measured, tasks=("sst2", "openbookqa"), all_checkpoints=True), QUIET)
    assert (measured / "results.jsonl").read_text() == old
    assert {path: path.stat().st_mtime_ns for path in (measured / "cache").glob("*/*/entry.json")} == before


def _child(work: Callable[[], Any]) -> int:
    """Start a process that has everything imported."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        work()
        status = 0
    finally:
        os._exit(status)


def test_killed_ten_times(bases: dict[str, Path], copies: Path, tmp_path: Path) -> None:
    """A run that is killed at random moments ends in the lines of one that is not, times aside."""

    def grid(out: Path) -> BenchConfig:
        return config(bases["bert"], copies, out, methods=(*FEW, "mc_dropout", "laplace_evidence"), seeds=(0, 1))

    start = time.perf_counter()
    assert os.waitpid(_child(lambda: bench(grid(tmp_path / "whole"), QUIET)), 0)[1] == 0
    took = time.perf_counter() - start
    generator, killed = random.Random(7), 0
    for _ in range(200):
        pid = _child(lambda: bench(grid(tmp_path / "killed"), QUIET))
        if killed == 10:
            assert os.waitpid(pid, 0)[1] == 0
            break
        time.sleep(generator.uniform(0.02, 0.15) * took)
        os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, 0)[1] == signal.SIGKILL:
            killed += 1
    assert killed == 10
    whole, found = (read_lines(tmp_path / name / "results.jsonl") for name in ("whole", "killed"))
    assert len(whole) == 12
    assert timeless(found) == timeless(whole)
    assert not list((tmp_path / "killed" / "cache").glob("*/.partial-*"))


def test_seeds_fix_everything_and_differ(bases: dict[str, Path], copies: Path, tmp_path: Path) -> None:
    changes = {"methods": ("map", "mc_dropout"), "seeds": (0, 1), "ood": {}}
    one, two = (bench(config(bases["bert"], copies, tmp_path / name, **changes), QUIET) for name in "ab")
    assert timeless(one) == timeless(two)
    assert one[0]["figures"] != one[2]["figures"]


def test_a_language_model(bases: dict[str, Path], copies: Path, tmp_path: Path) -> None:
    lines = bench(config(bases["llama"], copies, tmp_path, tasks=("boolq",), ood={}, methods=("map", "laplace")), QUIET)
    assert [line["method"] for line in lines] == ["map", "laplace"]
    assert all(np.isfinite(line["figures"]["nll"]) for line in lines)


def test_the_command_line(bases: dict[str, Path], copies: Path, tmp_path: Path) -> None:
    said = run_well(
        *("bench", "--base", bases["bert"], "--tasks", "sst2,rte", "--methods", "map,laplace", "--seeds", "3"),
        *("--only", "laplace=rte", "--epochs", 1, "--train-batch-size", 5, "--examples", 10, "--test-examples", 5),
        *("--data-dir", copies, "--out", tmp_path / "out", "--max-length", 20, "--quiet"),
    )
    lines = read_lines(tmp_path / "out" / "results.jsonl")
    assert [(line["task"], line["method"]) for line in lines] == [("sst2", "map"), ("rte", "map"), ("rte", "laplace")]
    assert {tuple(line["rows"].values()) for line in lines} == {(10, 5)}
    assert lines[0]["training"]["batch_size"] == 5
    assert lines[0]["training"]["seed"] == 3
    assert "| MAP |" in said


@pytest.mark.parametrize(("asked", "expected"), [((), {"rte"}), (("--ood", "none"), set())])
def test_a_presets_other_data_can_be_left_out(
    bases: dict[str, Path], copies: Path, tmp_path: Path, asked: tuple[str, ...], expected: set[str]
) -> None:
    run_well(
        *("bench", "--base", bases["bert"], "--preset", "small", "--tasks", "sst2", "--methods", "map", "--seeds", "0"),
        *("--epochs", 1, "--examples", 10, "--test-examples", 5, "--max-length", 20, "--quiet", *asked),
        *("--data-dir", copies, "--out", tmp_path / "out"),
    )
    (line,) = read_lines(tmp_path / "out" / "results.jsonl")
    assert set(line["ood"]) == expected


def test_a_checkpoint_costs_what_led_to_it(measured: Path) -> None:
    lines = [line for line in read_lines(measured / "results.jsonl") if line["task"] == "sst2"]
    spent = {line["checkpoint"]: line["cost"] for line in lines if line["method"] == "map"}
    for unit in ("seconds", "forward_passes"):
        whole = spent["last"][unit]["train"]
        assert spent["checkpoint-4"][unit]["train"] == pytest.approx(whole * 4 / 12)
        assert spent["checkpoint-8"][unit]["train"] == pytest.approx(whole * 8 / 12)


def test_other_data_of_a_task_add_up(tmp_path: Path) -> None:
    grid = {"base": "base", "methods": ("map",), "seeds": (0,), "out": tmp_path, "cache": tmp_path}
    made = BenchConfig(**grid, tasks=("SST2", "ARC-Easy"), ood={"sst2": ("rte",), "SST2": ("mrpc",)})
    assert made.tasks == ("sst2", "arc_easy")
    assert made.ood == {"sst2": ("rte", "mrpc")}


def test_a_method_by_itself_has_its_page(bases: dict[str, Path], copies: Path, tmp_path: Path) -> None:
    """Those that are left out of some of the page's drawings, too; training leaves one checkpoint, which is said."""
    for name in ("laplace_evidence", "softmax_twice"):
        result = run(
            *("bench", "--base", bases["bert"], "--data-dir", copies, "--out", tmp_path / name, "--tasks", "sst2"),
            *("--methods", name, "--seeds", 0, "--epochs", 1, "--checkpoints", "all", "--max-length", 4, "--quiet"),
            *("--cache", tmp_path / "cache", "--ood", "sst2=rte", "--ood", "sst2=mrpc"),
        )
        assert result.exit_code == 0, result.stderr
        assert ("there is one checkpoint" in result.stderr) == (name == "laplace_evidence")
        assert "inputs of sst2:validation are cut to 4 tokens" in result.stderr
        page = (tmp_path / name / "report.html").read_text()
        assert "of sst2:validation" in page.partition("Cut to the most tokens: ")[2].partition(".")[0]
        assert page.count("Risk-coverage curves on sst2") == (name == "laplace_evidence")
        (line,) = read_lines(tmp_path / name / "results.jsonl")
        assert set(line["ood"]) == {"rte", "mrpc"}
        assert line["protocol"]["device"] == "cpu"
        assert line["protocol"]["held_out"] == 0.2


def test_what_is_not_wanted_is_not_trained(bases: dict[str, Path], copies: Path, tmp_path: Path) -> None:
    bench(config(bases["bert"], copies, tmp_path, methods=("temperature",), ood={}, all_checkpoints=True), QUIET)
    assert len(list((tmp_path / "cache" / "adapters").iterdir())) == 1


def test_an_own_training_is_of_the_dtype(bases: dict[str, Path], copies: Path, tmp_path: Path) -> None:
    """What is remembered of one dtype is not taken for another; methods of one dtype share it."""
    for dtype, states in (("auto", 1), ("bfloat16", 2), ("auto", 2)):
        changes = {"methods": ("blob_mean", "blob"), "ood": {}, "dtype": dtype}
        bench(config(bases["bert"], copies, tmp_path, **changes), QUIET)
        assert len(list((tmp_path / "cache" / "states").iterdir())) == states


def test_presets_are_grids(tmp_path: Path) -> None:
    for preset in BENCH_PRESETS.values():
        made = BenchConfig(
            "base", preset.tasks, preset.methods, (0,), tmp_path, tmp_path, only=preset.only, ood=preset.ood
        )
        assert {method.name for task in preset.tasks for method in made.methods_on(task)} == set(METHODS)
