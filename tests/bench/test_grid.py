"""A whole small grid: results are those of the verbs, every run ends in the same lines, and refusals are by name."""

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

from cli.folders import error_line, run
from cli.task_scenes import bases, copies, run_well
from laplace_lora.bench import BENCH_PRESETS, METHODS, BenchConfig, bench
from laplace_lora.bench.judging import Cell, Judge
from laplace_lora.bench.lines import read_lines
from laplace_lora.bench.settings import OTHER_SEEDS
from laplace_lora.bench.subjects import OpenedTraining
from laplace_lora.bench.trainings import Training, Trainings
from laplace_lora.commands.console import Console
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import load_outputs
from laplace_lora.training import TrainingSettings

__all__ = ["bases", "copies"]

QUIET = Console(quiet=True)
TRAINING = TrainingSettings(epochs=3, batch_size=4, learning_rate=5e-3, dropout=0.1)
FEW = ("map", "temperature", "deep_ensemble", "laplace")


def config(base: Path, data: Path, out: Path, **changes: Any) -> BenchConfig:
    settings: dict[str, Any] = {
        "base": str(base),
        "tasks": ("sst2",),
        "methods": FEW,
        "seeds": (0,),
        "out": out,
        "cache": out / "cache",
        "data_dir": data,
        "training": TRAINING,
        "ood": {"sst2": ("rte", "mrpc")},
        "max_length": 24,
        "batch_size": 4,
    }
    return BenchConfig(**(settings | changes))


def timeless(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "cost"} for line in lines]


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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--tasks", "sst2", "--methods", "magic"), "there is no method 'magic'"),
        (("--tasks", "nothing"), "neither a file nor a task"),
        (("--methods", "map"), "there are no tasks"),
        (("--tasks", "sst2,sst2"), "names sst2 twice"),
        (("--tasks", "sst2", "--seeds", "a"), "no whole numbers"),
        (("--tasks", "sst2", "--seeds", "1,1"), "names 1 twice"),
        (("--tasks", "sst2", "--checkpoints", "some"), "neither last nor all"),
        (("--tasks", "sst2", "--ood", "rte"), "write it as NAME=A,B"),
        (("--tasks", "sst2", "--ood", "none", "--ood", "sst2=rte"), "--ood none is no list"),
        (("--tasks", "sst2", "--ood", "rte=sst2"), "--ood rte is none of --tasks"),
        (("--tasks", "sst2", "--ood", "map=rte"), "--ood map is none of --tasks"),
        (("--tasks", "sst2", "--only", "sst2=map"), "--only sst2 is none of --methods"),
        (("--tasks", "sst2", "--only", "map=sstt2"), "--only map names sstt2, which is none of --tasks"),
        (("--preset", "small", "--tasks", "rte", "--methods", "blob"), "leaves nothing to measure"),
        (("--tasks", "sst2,SST2"), "names sst2 twice"),
        (("--tasks", "sst2", "--seeds", "-1"), "seed -1 is none"),
        (("--tasks", "sst2", "--seeds", "0,2000"), "those of seeds 0 and 2000 would share some"),
        (("--tasks", "sst2", "--device", "cuda:77"), "cannot be used"),
        (("--tasks", "sst2", "--methods", "swag", "--epochs", "1"), "sst2, seed 0: swag: swag collects 40 iterates"),
        (("--preset", "large"), "there is no grid 'large'"),
        (("--preset", "smal", "--tasks", "rte"), "did you mean small? Choose from"),
        (("--tasks", "sst2", "--methods", "lapalce"), "did you mean laplace? Choose from"),
        (("--tasks", "sst2", "--methods", "map", "--only", "blob=sst2"), "--only blob is none of --methods"),
        (("--tasks", ""), "--tasks has an empty name"),
        (("--tasks", ","), "--tasks has an empty name"),
    ],
)
def test_refusals(
    bases: dict[str, Path], copies: Path, tmp_path: Path, options: tuple[str, ...], expected: str
) -> None:
    result = run("bench", "--base", bases["bert"], "--data-dir", copies, "--out", tmp_path / "out", *options)
    assert expected in error_line(result)
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_a_method_that_refuses_does_not_hold_up_the_others(
    bases: dict[str, Path], copies: Path, tmp_path: Path
) -> None:
    result = run(
        *("bench", "--base", bases["bert"], "--data-dir", copies, "--out", tmp_path / "out", "--tasks", "sst2"),
        *("--methods", "map,swag,laplace", "--seeds", "0,1", "--epochs", 1, "--max-length", 20, "--quiet"),
    )
    said = error_line(result)
    assert "2 results or trainings could not be had, as the warnings say, and everything else is written" in said
    assert "sst2, seed 0: swag: swag collects 40 iterates" in said
    assert sum(line.startswith("warning: sst2, seed ") for line in result.stderr.splitlines()) == 2
    lines = read_lines(tmp_path / "out" / "results.jsonl")
    assert [(line["method"], line["seed"]) for line in lines] == [
        ("map", 0),
        ("laplace", 0),
        ("map", 1),
        ("laplace", 1),
    ]
    assert (tmp_path / "out" / "report.html").exists()


def test_an_adapter_that_cannot_be_trained_does_not_hold_up_other_tasks(
    bases: dict[str, Path], copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Trainings.folder

    def folder(self: Trainings, training: Training) -> Path:
        if training.task == "rte" or training.seed == OTHER_SEEDS:
            raise LaplaceLoRAError("answers must be one token each.")
        return before(self, training)

    monkeypatch.setattr(Trainings, "folder", folder)
    grid = {"tasks": ("rte", "sst2"), "methods": ("map", "deep_ensemble"), "ood": {}}
    with pytest.raises(
        LaplaceLoRAError, match=r"4 results.*the first: training rte, seed 0: answers must be one token"
    ):
        bench(config(bases["bert"], copies, tmp_path, **grid), QUIET)
    assert [(line["task"], line["method"]) for line in read_lines(tmp_path / "results.jsonl")] == [("sst2", "map")]
    assert "sst2" in (tmp_path / "tables.md").read_text()


def test_an_error_that_nobody_foresaw_names_its_job(
    bases: dict[str, Path], copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("laplace_lora.methods.temperature.fit_temperature", fail)
    result = run(
        *("bench", "--base", bases["bert"], "--data-dir", copies, "--out", tmp_path, "--tasks", "sst2", "--quiet"),
        *("--methods", "map,temperature", "--seeds", 0, "--epochs", 1, "--max-length", 20),
    )
    assert result.exit_code == 70
    assert "sst2, seed 0: temperature: internal error, RuntimeError: a bug" in result.stderr
    assert "| MAP |" in (tmp_path / "tables.md").read_text()


def test_a_method_that_refuses_a_checkpoint_is_asked_at_the_end(
    measured: Path, bases: dict[str, Path], copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Judge.measure

    def measure(self: Judge, cell: Cell, opened: OpenedTraining) -> Path:
        if cell.checkpoint == "checkpoint-4" and cell.method.name == "laplace":
            raise LaplaceLoRAError("not so early.")
        return before(self, cell, opened)

    monkeypatch.setattr(Judge, "measure", measure)
    changes = {"methods": ("map", "laplace"), "all_checkpoints": True, "ood": {}}
    with pytest.raises(
        LaplaceLoRAError, match=r"1 results or trainings could not be had.*checkpoint-4: laplace: not so"
    ):
        bench(config(bases["bert"], copies, tmp_path, **changes), QUIET)
    lines = read_lines(tmp_path / "results.jsonl")
    assert [line["checkpoint"] for line in lines if line["method"] == "laplace"] == ["checkpoint-8", "last"]


def test_a_checkpoint_costs_what_led_to_it(measured: Path) -> None:
    lines = [line for line in read_lines(measured / "results.jsonl") if line["task"] == "sst2"]
    spent = {line["checkpoint"]: line["cost"] for line in lines if line["method"] == "map"}
    for unit in ("seconds", "forward_passes"):
        whole = spent["last"][unit]["train"]
        assert spent["checkpoint-4"][unit]["train"] == pytest.approx(whole * 4 / 12)
        assert spent["checkpoint-8"][unit]["train"] == pytest.approx(whole * 8 / 12)


def test_warnings_are_passed_on_once(
    bases: dict[str, Path], copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laplace_lora.methods.temperature.fit_temperature", lambda *_: 100.0)
    arguments = (
        *("bench", "--base", bases["bert"], "--data-dir", copies, "--out", tmp_path, "--tasks", "sst2", "--quiet"),
        *("--methods", "map,temperature", "--seeds", "0,1", "--epochs", 1, "--max-length", 20),
    )
    for _ in range(2):  # from the cache too
        result = run(*arguments)
        assert result.stderr.count("sst2, seed 0: temperature: the temperature is at its bound, 100") == 1
        assert "seed 1: temperature" not in result.stderr
    page = (tmp_path / "report.html").read_text()
    assert "Temperature, 2 of the results: the temperature is at its bound" in page


def test_what_is_confined_is_said_and_old_tables_go(
    bases: dict[str, Path], copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        *("bench", "--base", bases["bert"], "--data-dir", copies, "--out", tmp_path, "--preset", "small"),
        *("--methods", "map,blob", "--seeds", 0, "--epochs", 1, "--max-length", 20, "--examples", 10),
    )
    result = run(*arguments, "--tasks", "rte", "--test-examples", 5)
    assert "warning: blob: confined to other tasks, and on none of these; --only none lifts that." in result.stderr
    assert (tmp_path / "tables.md").exists()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainings, "folder", fail)
    result = run(*arguments, "--tasks", "sst2,rte", "--json-log")
    assert "blob: on sst2 alone; --only none lifts that." in result.stderr
    assert "training sst2, seed 0: job 1 of 4, ? left" in result.stderr
    assert not (tmp_path / "tables.md").exists()


def test_a_file_is_no_task(bases: dict[str, Path], copies: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a", "label": 0}\n')
    result = run("bench", "--base", bases["bert"], "--data-dir", copies, "--out", tmp_path / "out", "--tasks", file)
    assert "is no task" in error_line(result)
    result = run("bench", "--base", bases["bert"], "--out", tmp_path / "out", "--tasks", file)
    assert "is no task" in error_line(result)


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


def test_an_interrupted_grid_says_what_it_kept(
    bases: dict[str, Path], copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("laplace_lora.methods.temperature.fit_temperature", fail)
    result = run(
        *("bench", "--base", bases["bert"], "--data-dir", copies, "--out", tmp_path / "out", "--tasks", "sst2"),
        *("--methods", "map,temperature", "--seeds", 0, "--epochs", 1, "--quiet"),
    )
    assert result.exit_code == 130
    kept = f"interrupted; what was done is kept in {tmp_path / 'out' / 'cache'}"
    assert kept in result.stderr.splitlines()[-1]
    assert [line["method"] for line in read_lines(tmp_path / "out" / "results.jsonl")] == ["map"]
    assert not list((tmp_path / "out").rglob(".*"))


def test_presets_are_grids(tmp_path: Path) -> None:
    for preset in BENCH_PRESETS.values():
        made = BenchConfig(
            "base", preset.tasks, preset.methods, (0,), tmp_path, tmp_path, only=preset.only, ood=preset.ood
        )
        assert {method.name for task in preset.tasks for method in made.methods_on(task)} == set(METHODS)


def test_a_share_that_is_none() -> None:
    with pytest.raises(LaplaceLoRAError, match="no share"):
        BenchConfig("base", ("sst2",), ("map",), (0,), Path("out"), Path("cache"), held_out=1.0)
