"""``evaluate --target-risk --coverage`` chooses rules, saves them with the posterior, and ``predict`` follows them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli.folders import Folders, error_line, rows, run, tree, write_jsonl

RULES = ["--target-risk", "0.75", "--coverage", "0.8"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _evaluate(adapter: Path, data: Path, out: Path, *options: object) -> Any:
    result = run("evaluate", "--adapter", adapter, "--data", data, "--out", out, *options)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "held.jsonl", rows(120, 2, seed=5))


@pytest.fixture
def decided(fitted: Path, tmp_path: Path, data: Path) -> Path:
    folder = tmp_path / "adapter"
    shutil.copytree(fitted, folder)
    _evaluate(folder, data, tmp_path / "first", *RULES)
    return folder


def test_rules_are_printed_saved_and_followed(decided: Path, tmp_path: Path, data: Path) -> None:
    again = _evaluate(decided, data, tmp_path / "out", *RULES)
    assert "of these rows are answered" in again.stdout
    assert "hold the right one with 80 % probability" in again.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    saved = json.loads((decided / "decisions.json").read_text())
    threshold = saved["abstention"]["threshold"]
    assert metrics["abstention"]["threshold"] == threshold
    assert saved["abstention"]["data"] == {"file": str(data), "rows": 120}
    assert saved["abstention"]["bound"] <= 0.75
    assert "Answer above confidence" in (tmp_path / "out" / "report.html").read_text()
    predict = run("predict", "--adapter", decided, "--data", data, "--out", tmp_path / "p.jsonl")
    assert predict.exit_code == 0, predict.stderr
    assert "decisions.json" in predict.stderr
    found = _lines(tmp_path / "p.jsonl")
    assert [one["abstain"] for one in found] == [not one["confidence"] > threshold for one in found]
    answered = sum(not one["abstain"] for one in found) / len(found)
    assert answered == pytest.approx(saved["abstention"]["coverage"])
    least = saved["sets"]["least_probability"]
    for one in found:
        likeliest = max(one["probabilities"])
        wanted = [k for k, p in enumerate(one["probabilities"]) if p >= least or p == likeliest]
        assert one["prediction_set"] == wanted
    sizes = [len(one["prediction_set"]) for one in found]
    assert sum(sizes) / len(sizes) == pytest.approx(saved["sets"]["mean_size"])


def test_without_rules_nothing_is_marked(fitted: Path, tmp_path: Path, data: Path) -> None:
    run("predict", "--adapter", fitted, "--data", data, "--out", tmp_path / "p.jsonl")
    assert not {"abstain", "prediction_set"} & set(_lines(tmp_path / "p.jsonl")[0])


def test_a_second_rule_leaves_the_first(decided: Path, tmp_path: Path, data: Path) -> None:
    before = json.loads((decided / "decisions.json").read_text())
    _evaluate(decided, data, tmp_path / "out", "--coverage", "0.5")
    after = json.loads((decided / "decisions.json").read_text())
    assert after["abstention"] == before["abstention"]
    assert after["sets"]["coverage"] == 0.5


def test_where_no_threshold_keeps_the_risk_everything_abstains(decided: Path, tmp_path: Path, data: Path) -> None:
    found = _evaluate(decided, data, tmp_path / "out", "--target-risk", "0.001")
    assert "No threshold of the confidence keeps the error of the answers below 0.1 %" in found.stdout
    quiet = _evaluate(decided, data, tmp_path / "out", "--target-risk", "0.001", "--quiet")
    assert "predict will abstain from every answer; give more rows than 120" in quiet.stderr
    assert "or a larger --target-risk." in quiet.stderr
    run("predict", "--adapter", decided, "--data", data, "--out", tmp_path / "p.jsonl")
    assert all(one["abstain"] for one in _lines(tmp_path / "p.jsonl"))


def test_too_few_rows_for_a_coverage_are_said(decided: Path, tmp_path: Path) -> None:
    few = write_jsonl(tmp_path / "few.jsonl", rows(8, 2, seed=6))
    found = _evaluate(decided, few, tmp_path / "out", "--coverage", "0.9", "--quiet")
    assert "8 rows are too few for --coverage 0.9, and every set will hold all classes; give 9 rows" in found.stderr
    enough = write_jsonl(tmp_path / "enough.jsonl", rows(9, 2, seed=6))
    assert "too few" not in _evaluate(decided, enough, tmp_path / "out", "--coverage", "0.9", "--quiet").stderr


def test_rules_stand_in_the_log(decided: Path, tmp_path: Path, data: Path) -> None:
    found = _evaluate(decided, data, tmp_path / "out", *RULES, "--json-log")
    events = [json.loads(line) for line in found.stderr.splitlines() if line.startswith("{")]
    said = next(event for event in events if event["event"] == "decisions")
    assert {"threshold", "coverage", "bound"} <= set(said["abstention"])
    assert said["sets"]["coverage"] == 0.8


def test_rules_of_another_fit_are_not_followed(decided: Path, folders: Folders, tmp_path: Path, data: Path) -> None:
    assert run("fit", "--adapter", decided, "--data", folders.train, "--prior", "3").exit_code == 0
    predict = run("predict", "--adapter", decided, "--data", data, "--out", tmp_path / "p.jsonl")
    assert predict.exit_code == 0
    assert "is of another fit and is not followed" in predict.stderr
    assert "abstain" not in _lines(tmp_path / "p.jsonl")[0]


@pytest.mark.parametrize("damage", ["[", "{}", '{"posterior_sha256": "", "sets": {"least_probability": 7}}'])
def test_a_damaged_file_is_refused(damage: str, decided: Path, tmp_path: Path, data: Path) -> None:
    (decided / "decisions.json").write_text(damage)
    line = error_line(run("predict", "--adapter", decided, "--data", data, "--out", tmp_path / "p.jsonl"))
    assert "decisions.json" in line
    assert "evaluate --target-risk" in line
    assert not (tmp_path / "p.jsonl").exists()
    # What is advised mends it.
    again = _evaluate(decided, data, tmp_path / "again", *RULES)
    assert "was damaged, and is written anew" in again.stderr
    assert run("predict", "--adapter", decided, "--data", data, "--out", tmp_path / "p.jsonl").exit_code == 0


def test_rows_of_the_training_choose_nothing(fitted: Path, folders: Folders, tmp_path: Path) -> None:
    options = ["--adapter", fitted, "--data", folders.train, "--out", tmp_path / "out", "--target-risk", "0.5"]
    result = run("evaluate", *options)
    assert result.exit_code == 1
    assert "24 of the rows" in result.stderr
    assert "promises too much; give other rows." in result.stderr
    assert not (fitted / "decisions.json").exists()
    assert not (tmp_path / "out").exists()


def test_rows_that_were_tuned_on_choose_nothing(adapter: Path, folders: Folders, tmp_path: Path, data: Path) -> None:
    fit = run("fit", "--adapter", adapter, "--data", folders.train, "--validation", data, "--quiet")
    assert fit.exit_code == 0, fit.stderr
    options = ["--adapter", adapter, "--out", tmp_path / "out", "--quiet"]
    for rule in (["--target-risk", "0.9"], ["--coverage", "0.9"]):
        result = run("evaluate", *options, "--data", data, *rule)
        assert result.exit_code == 1
        assert "120 of the rows in" in result.stderr
        assert "no bound holds for a rule that is chosen on them; give other rows." in result.stderr
        assert not (adapter / "decisions.json").exists()
        assert not (tmp_path / "out").exists()
    figures = run("evaluate", *options, "--data", data)
    assert figures.exit_code == 0
    assert "tuned on (fit --validation): every figure flatters a little; give other rows." in figures.stderr
    other = write_jsonl(tmp_path / "other.jsonl", rows(60, 2, seed=8))
    # What was tuned on may choose the temperature that is compared with.
    fine = run("evaluate", *options, "--data", other, "--validation", data, "--coverage", "0.9")
    assert fine.exit_code == 0
    assert "tuned on" not in fine.stderr
    assert (adapter / "decisions.json").exists()


def test_rows_of_the_validation_choose_nothing(fitted: Path, tmp_path: Path, data: Path) -> None:
    options = ["--data", data, "--validation", data, "--out", tmp_path / "out", "--coverage", "0.9"]
    assert "--validation names the same ones" in error_line(run("evaluate", "--adapter", fitted, *options))


@pytest.mark.parametrize("options", [("--target-risk", "1"), ("--target-risk", "-0.1"), ("--coverage", "0")])
def test_what_is_no_share_is_refused_before_anything(
    options: tuple[str, str], fitted: Path, tmp_path: Path, data: Path
) -> None:
    before = tree(fitted)
    result = run("evaluate", "--adapter", fitted, "--data", data, "--out", tmp_path / "out", *options)
    assert f"{options[0]} {options[1]} is no share" in error_line(result)
    assert tree(fitted) == before
    assert not (tmp_path / "out").exists()
