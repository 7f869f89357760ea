"""Tasks by name: which labels count, and what would be done in silence otherwise."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.folders import error_line, run
from cli.task_scenes import bases, copies
from cli.task_scenes import run_well as _run

__all__ = ["bases", "copies"]


# Labels of what lies outside.


@pytest.mark.parametrize(
    ("base", "readout", "inside", "outside", "said"),
    [
        ("bert", "class", "sst2", "rte", "its classes are entailment, not entailment, and the adapter's are negative,"),
        ("bert", "class", "sst2", "openbookqa", "its classes are without names, and the adapter's are negative,"),
        ("llama", "answers", "boolq", "rte", "its classes are A, B, and the adapter's are False, True"),
        ("llama", "answers", "openbookqa", "winogrande_s", None),
        ("bert", "options", "openbookqa", "rte", None),
    ],
)
def test_labels_count_where_they_mean_the_same(
    copies: Path, bases: dict[str, Path], tmp_path: Path, base: str, readout: str, inside: str, outside: str, said: Any
) -> None:
    named = ("--data", inside, "--data-dir", copies)
    train = ("--steps", 1, "--rank", 1, "--readout", readout, "--model", bases[base], "--quiet")
    _run("train", *named, *train, "--out", tmp_path / "adapter")
    adapter = ("--adapter", tmp_path / "adapter")
    _run("fit", *named, *adapter, "--quiet", "--prior", "1")
    result = run("evaluate", *named, *adapter, "--ood", outside, "--out", tmp_path / "report")
    assert result.exit_code == 0, result.stderr
    document = next(iter(json.loads((tmp_path / "report" / "metrics.json").read_text())["ood"].values()))
    assert (document["comparison"] is None) == (said is not None)
    assert said is None or said in document["labels_ignored"]
    assert said is None or said in result.stderr


def test_predict_by_name(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    """Also rows whose labels are hidden on the hub."""
    named = ("--data", "rte", "--data-dir", copies, "--quiet")
    adapter = ("--adapter", tmp_path / "adapter")
    _run("train", *named, "--steps", 1, "--rank", 1, "--model", bases["bert"], "--out", tmp_path / "adapter")
    _run("fit", *named, *adapter, "--prior", "1")
    out = tmp_path / "predictions.jsonl"
    _run("predict", *adapter, "--data", "rte:test", "--data-dir", copies, "--out", out, "--quiet")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 6
    assert {record["label"] for record in records} <= {"entailment", "not entailment"}
    hidden = run("evaluate", *adapter, "--data", "rte:test", "--data-dir", copies, "--out", tmp_path / "report")
    said = "rte:test:1 has no label; the hub hides the labels of test: use rte:validation."
    assert error_line(hidden).endswith(said)


# What would be done in silence otherwise.


@pytest.fixture(scope="module")
def rte_adapter(copies: Path, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rte") / "adapter"
    named = ("--data", "rte", "--data-dir", copies, "--quiet")
    _run("train", *named, "--steps", 1, "--rank", 1, "--model", bases["bert"], "--out", folder)
    _run("fit", *named, "--adapter", folder, "--prior", "1")
    return folder


@pytest.mark.parametrize("option", ["--data", "--validation"])
def test_labels_of_another_task_are_refused(copies: Path, rte_adapter: Path, tmp_path: Path, option: str) -> None:
    other = {"--data": "rte", "--data-dir": copies, "--out": tmp_path / "report"} | {option: "mrpc:train"}
    arguments = [part for pair in other.items() for part in pair]
    said = error_line(run("evaluate", "--adapter", rte_adapter, *arguments))
    assert "mrpc:train is another task: its classes are not equivalent, equivalent, and the adapter's" in said
    fit = ("--adapter", rte_adapter, "--data", "mrpc", "--data-dir", copies, "--out", tmp_path / "posterior")
    assert "mrpc:train is another task" in error_line(run("fit", *fit))


def test_a_temperature_chosen_on_what_is_evaluated(copies: Path, rte_adapter: Path, tmp_path: Path) -> None:
    named = ("--data", "rte", "--validation", "rte:validation[:3]", "--data-dir", copies, "--out", tmp_path / "report")
    result = run("evaluate", "--adapter", rte_adapter, *named)
    assert "warning: 3 rows of rte:validation[:3] stand in rte:validation too: the temperature is" in result.stderr


def test_other_data_keep_their_passage(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    named = ("--data", "openbookqa", "--data-dir", copies)
    adapter = tmp_path / "adapter"
    train = ("--steps", 1, "--rank", 1, "--readout", "options", "--model", bases["bert"], "--quiet")
    _run("train", *named, *train, "--out", adapter)
    _run("fit", *named, "--adapter", adapter, "--quiet", "--prior", "1")
    seen: list[str] = []
    scan = sys.modules["laplace_lora.commands.inputs"].scan

    def noted(source: Any, *arguments: Any, **options: Any) -> Any:
        found = scan(source, *arguments, **options)
        seen.append(f"{source}: {found.form.template}")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["laplace_lora.commands.inputs"], "scan", noted)
        outside = ("--ood", "boolq", "--ood", "arc_easy", "--out", tmp_path / "report", "--quiet")
        _run("evaluate", *named, "--adapter", adapter, *outside)
    assert "boolq:validation: {{ passage }}\n{{ question }}" in seen
    assert "arc_easy:validation: {{ question }}" in seen


def test_other_data_may_have_more_choices(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    named = ("--data", "winogrande_s", "--data-dir", copies)
    train = ("--steps", 1, "--rank", 1, "--model", bases["llama"], "--quiet")
    _run("train", *named, *train, "--out", tmp_path / "adapter")
    _run("fit", *named, "--adapter", tmp_path / "adapter", "--quiet", "--prior", "1")
    outside = ("--ood", "arc_easy", "--out", tmp_path / "report")
    result = run("evaluate", *named, "--adapter", tmp_path / "adapter", *outside)
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())["ood"]["arc_easy:validation"]
    assert found["comparison"] is None
    assert "its classes are A, B, C, D, and the adapter's are A, B" in found["labels_ignored"]


@pytest.mark.parametrize(
    ("base", "options", "said"),
    [
        ("llama", ("--padding-side", "foo"), "padding side 'foo' is neither left nor right; choose one."),
        ("bert", ("--padding-side", "left"), "encoders pool the first token and are padded on the right"),
        ("bert", ("--patience", 3), "--patience waits for less loss on --validation, and there is none; leave it out."),
        ("bert", ("--prompts", "paper"), "--prompts has no use where outputs are read by class; leave it out."),
        ("llama", ("--prompts", "paper", "--template", "{{ premise }}"), "--prompts has no use beside a template"),
        ("llama", ("--head-learning-rate", 0.1), "--head-learning-rate is for a new head, and none is trained here"),
        (
            "bert",
            ("--labels", "a,b,c"),
            "3 names are given by --labels, and rte:train has 2 classes; name each",
        ),
    ],
)
def test_options_without_use(
    copies: Path, bases: dict[str, Path], tmp_path: Path, base: str, options: tuple[Any, ...], said: str
) -> None:
    named = ("--data", "rte", "--data-dir", copies, "--model", bases[base], "--out", tmp_path / "out", "--dry-run")
    assert said in error_line(run("train", *named, *options))


def test_prompts_beside_those_of_the_training(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    named = ("--data", "openbookqa", "--data-dir", copies, "--quiet")
    _run("train", *named, "--steps", 1, "--rank", 1, "--model", bases["llama"], "--out", tmp_path / "adapter")
    fit = ("--adapter", tmp_path / "adapter", "--prior", "1")
    said = error_line(run("fit", *named, *fit, "--prompts", "successors"))
    assert "--prompts has no use beside a template that was given or saved with the adapter" in said
    _run("fit", *named, *fit, "--prompts", "paper")


@pytest.mark.parametrize("option", [("--readout", "class"), ("--answers", "A,B"), ("--max-length", 5)])
def test_show_needs_a_tokenizer_for_tokens(copies: Path, option: tuple[Any, ...]) -> None:
    said = error_line(run("tasks", "show", "rte", "--data-dir", copies, *option))
    assert said.endswith(f"{option[0]} needs a tokenizer; give --tokenizer DIR, or leave it out.")


def test_a_task_knows_its_classes(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    """Also where the first rows are of few of them."""
    named = ("--data-dir", copies, "--model", bases["bert"], "--out", tmp_path / "out", "--dry-run", "--quiet")
    for name, classes in (("arc_challenge_5:train[:3]", 5), ("openbookqa:train[:2]", 4), ("trec:train[:2]", 6)):
        assert f"class_logits, {classes} classes" in _run("train", "--data", name, "--readout", "class", *named)


def test_a_folder_of_a_tasks_name_is_no_file(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copies / "nyu-mll")
    Path("rte").mkdir(exist_ok=True)
    assert "rte:validation, n = " in _run("tasks", "show", "rte", "--data-dir", copies)


def test_a_presets_prompts_are_not_a_files(bases: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "the film", "choices": ["good", "bad"], "label": 0}\n' * 4)
    options = ("--data", data, "--readout", "answers", "--out", tmp_path / "out", "--dry-run", "--quiet")
    said = _run("train", "--preset", "successors", "--model", bases["llama"], *options)
    assert "is a file: the preset's prompts belong to tasks, and are not used" in said
