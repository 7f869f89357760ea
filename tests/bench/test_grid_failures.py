"""Refusals by name, errors and interruptions: what a grid says of them, and what it leaves behind."""

from pathlib import Path

import pytest

from bench.grids import QUIET, config
from cli.folders import error_line, run
from cli.task_scenes import bases, copies
from laplace_lora.bench import BenchConfig, bench
from laplace_lora.bench.judging import Cell, Judge
from laplace_lora.bench.lines import read_lines
from laplace_lora.bench.settings import OTHER_SEEDS
from laplace_lora.bench.subjects import OpenedTraining
from laplace_lora.bench.trainings import Training, Trainings
from laplace_lora.errors import LaplaceLoRAError

__all__ = ["bases", "copies"]


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


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (RuntimeError("a bug"), 70, "sst2, seed 0: temperature: internal error, RuntimeError: a bug"),
        (OSError(28, "No space left on device"), 1, "sst2, seed 0: temperature: No space left on device; check"),
    ],
)
def test_an_error_that_nobody_foresaw_names_its_job(
    bases: dict[str, Path],
    copies: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    expected: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("laplace_lora.methods.temperature.fit_temperature", fail)
    result = run(
        *("bench", "--base", bases["bert"], "--data-dir", copies, "--out", tmp_path, "--tasks", "sst2", "--quiet"),
        *("--methods", "map,temperature", "--seeds", 0, "--epochs", 1, "--max-length", 20),
    )
    assert result.exit_code == status
    assert expected in result.stderr
    assert "| MAP |" in (tmp_path / "tables.md").read_text()


def test_a_method_that_refuses_a_checkpoint_is_asked_at_the_end(
    bases: dict[str, Path], copies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_a_share_that_is_none() -> None:
    with pytest.raises(LaplaceLoRAError, match="no share"):
        BenchConfig("base", ("sst2",), ("map",), (0,), Path("out"), Path("cache"), held_out=1.0)
