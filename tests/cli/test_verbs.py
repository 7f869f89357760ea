"""The verbs on real folders: what they write, what they say, and that their numbers are the library's."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

from cli.folders import (
    MANY,
    POSTERIOR_CONFIG,
    POSTERIOR_WEIGHTS,
    TRAINING_CONFIG,
    Folders,
    copy,
    edit_json,
    rows,
    run,
    tree,
    write_jsonl,
)
from laplace_lora import LaplaceLoRA, load_adapter
from laplace_lora.config import Structure
from laplace_lora.evaluation import compare, load_outputs

VERBS = ("train", "fit", "evaluate", "predict", "info")


def _predictions(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _in_python(adapter: Path, texts: list[str], top_k: int | None = None) -> Any:
    model, tokenizer, _ = load_adapter(adapter)
    la = LaplaceLoRA.from_pretrained(model, adapter)
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=la.input_format.max_length)
    return la.predict(dict(batch), top_k)


# --- help ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "parts"),
    [
        ("train", ["--rank", "[default: 8]", "a probability", "[default: 0.001]", "--labels", "--patience", "TOKENS"]),
        ("fit", ["--structure", "[default: kron]", "1 / weight^2", "[default: the adapter's folder]", "K-1 backward"]),
        ("evaluate", ["--ood", "[default: 16;", "[default: the adapter's folder]", "--validation"]),
        ("predict", ["--top-k", "[default: all]", "in nats", "standard input", "[default: auto]"]),
        ("info", ["DIR", "No model is loaded"]),
    ],
)
def test_help_says_defaults_and_units(verb: str, parts: list[str]) -> None:
    text = " ".join(run(verb, "--help").stdout.split())
    for part in parts:
        assert part in text, part


# --- fit -----------------------------------------------------------------------------------------------------


def test_fit_saves_beside_the_adapter_and_touches_nothing_else(folders: Folders, adapter: Path) -> None:
    before = tree(adapter)
    result = run("fit", "--adapter", adapter, "--data", folders.train)
    assert result.exit_code == 0, result.stderr
    after = tree(adapter)
    assert set(after) - set(before) == {POSTERIOR_CONFIG, POSTERIOR_WEIGHTS}
    assert {name: after[name] for name in before} == before
    for part in ("24 examples, 2 classes", "2 forward and 2 backward passes", "accuracy 0.542", "NLL 0.80", "by auto"):
        assert part in result.stderr
    assert result.stdout == ""
    form = json.loads((adapter / POSTERIOR_CONFIG).read_text())["input_format"]
    assert form == {
        "label_names": None,
        "template": "{{ text }}",
        "max_length": 24,
        "padding_side": "right",
        "pair_template": None,
        "chat": False,
    }


def test_fitting_again_is_reproducible_and_remembers_the_format(folders: Folders, adapter: Path) -> None:
    options = ["--template", "{{ text|upper|lower }}", "--max-length", "9", "--labels", "bad,good"]
    assert run("fit", "--adapter", adapter, "--data", folders.train, "--quiet", *options).exit_code == 0
    first = tree(adapter)
    assert run("fit", "--adapter", adapter, "--data", folders.train, "--quiet").exit_code == 0
    assert tree(adapter) == first
    named = [{"text": row["text"], "label": ["bad", "good"][row["label"]]} for row in rows(12, 2)]
    result = run("evaluate", "--adapter", adapter, "--data", write_jsonl(adapter / "n.jsonl", named), "--out", adapter)
    assert result.exit_code == 0, result.stderr
    assert {record["label"] for record in _predictions(adapter / "predictions.jsonl")} == {"bad", "good"}
    info = run("info", adapter).stdout
    for part in ("classes: bad, good", "template: {{ text|upper|lower }}", "at most 9 tokens, padded on the right"):
        assert part in info


@pytest.mark.parametrize("structure", get_args(Structure))
@pytest.mark.parametrize("prior", [[], ["--prior", "0.5"], ["--prior-groups", "module"]])
def test_every_structure_from_fit_to_info(
    structure: str, prior: list[str], folders: Folders, adapter: Path, tmp_path: Path
) -> None:
    options = ["--structure", structure, "--batch-size", "7", "--seed", "3", *prior]
    fit = run("fit", "--adapter", adapter, "--data", folders.train, "--out", tmp_path / "a" / "b", *options)
    assert fit.exit_code == 0, fit.stderr
    info = run("info", tmp_path / "a" / "b")
    assert f"structure {structure}" in info.stdout
    out = tmp_path / "p.jsonl"
    posterior = ["--posterior", tmp_path / "a" / "b"]
    predict = run("predict", "--adapter", adapter, "--data", folders.test, "--out", out, *posterior)
    assert predict.exit_code == 0, predict.stderr
    assert len(_predictions(out)) == 12


def test_rows_on_disk_from_fit_to_predict(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    """The posterior is that of rows in memory, and its rows are in its own file alone."""
    scratch, written = tmp_path / "scratch", []
    scratch.mkdir()
    for more in ([], ["--rows-folder", scratch], ["--rows-folder", scratch, "--rows-dtype", "bfloat16"]):
        out = tmp_path / str(len(written))
        options = ["--structure", "exact", "--prior", "1000", *more]
        fit = run("fit", "--adapter", adapter, "--data", folders.train, "--out", out, *options)
        assert fit.exit_code == 0, fit.stderr
        assert list(scratch.iterdir()) == []
        assert str(scratch) not in (out / POSTERIOR_CONFIG).read_text()
        assert run("info", out).exit_code == 0
        written.append((out / POSTERIOR_WEIGHTS).read_bytes())
    assert written[0] == written[1]
    assert len(written[2]) < 0.6 * len(written[1])


def test_rows_on_disk_where_there_is_no_folder(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    for more, said in (
        (["--structure", "exact", "--rows-folder", tmp_path / "none"], "cannot be written"),
        (["--rows-folder", tmp_path], "structure='kron' keeps none"),
        (["--structure", "exact", "--rows-dtype", "int8"], "rows_dtype='int8' is not known"),
    ):
        fit = run("fit", "--adapter", adapter, "--data", folders.train, "--out", tmp_path / "a", *more)
        assert fit.exit_code == 1
        assert said in fit.stderr
    assert list(tmp_path.iterdir()) == [adapter]


def test_some_layers_from_fit_to_info(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    chosen = ["--target-modules", "query,classifier", "--layers-to-transform", "-1"]
    fit = run("fit", "--adapter", adapter, "--data", folders.train, "--out", tmp_path / "a", *chosen)
    assert fit.exit_code == 0, fit.stderr
    info = run("info", tmp_path / "a").stdout
    held = next(line for line in info.splitlines() if "held at their trained values" in line)
    assert "layer.0.attention.self.query" in held
    assert "layer.1.attention.self.query" not in held
    assert "value" in held


@pytest.mark.parametrize("rule", ["integral", "probit", "laplace_bridge", "mc"])
def test_every_rule_from_fit_to_predict(rule: str, folders: Folders, adapter: Path, tmp_path: Path) -> None:
    """The rule is stored with the posterior, and predictions follow it."""
    fit = run("fit", "--adapter", adapter, "--data", folders.train, "--predictive", rule, "--prior", "0.5")
    assert fit.exit_code == 0, fit.stderr
    out = tmp_path / "p.jsonl"
    predict = run("predict", "--adapter", adapter, "--data", folders.test, "--out", out)
    assert predict.exit_code == 0, predict.stderr
    model, _, _ = load_adapter(adapter)
    assert LaplaceLoRA.from_pretrained(model, adapter).config.predictive == rule
    expected = _in_python(adapter, [row["text"] for row in rows(12, 2, seed=1)]).confidence.tolist()
    assert [record["confidence"] for record in _predictions(out)] == pytest.approx(expected, abs=1e-6)


def test_rank_of_the_factors(folders: Folders, adapter: Path) -> None:
    """A small rank is stored, spoken of and warned about; what has no factors has no rank."""
    fit = run("fit", "--adapter", adapter, "--data", folders.train, "--factor-rank", "1", "--prior", "0.01")
    assert fit.exit_code == 0, fit.stderr
    assert "fit again with a larger rank" in fit.stderr
    assert "wide factors are sketched (rank 1)" in run("info", adapter).stdout
    size = (adapter / "posterior.safetensors").stat().st_size
    assert run("fit", "--adapter", adapter, "--data", folders.train).exit_code == 0
    assert (adapter / "posterior.safetensors").stat().st_size > size
    refused = run("fit", "--adapter", adapter, "--data", folders.train, "--structure", "diag", "--factor-rank", "8")
    assert refused.exit_code == 1
    assert "has none; leave it out" in refused.stderr


def test_fit_chooses_the_prior_on_validation_data(folders: Folders, adapter: Path) -> None:
    result = run("fit", "--adapter", adapter, "--data", folders.train, "--validation", folders.test)
    assert "prior precision by validation" in result.stderr
    assert "tuned by validation" in run("info", adapter).stdout


def test_names_out_of_order_give_a_warning(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    model, tokenizer, _ = load_adapter(adapter)
    items = rows(16, 2)
    with torch.no_grad():
        batch = tokenizer([item["text"] for item in items], return_tensors="pt", padding=True)
        right = model(**batch).logits.argmax(dim=-1).tolist()
    # Every label is the class that the adapter holds for the unlikely one.
    data = write_jsonl(tmp_path / "d.jsonl", [{**item, "label": 1 - k} for item, k in zip(items, right, strict=True)])
    result = run("fit", "--adapter", adapter, "--data", data, "--quiet")
    assert result.exit_code == 0
    assert "warning: the adapter is right on 0.000 of its training data, no better than" in result.stderr
    data = write_jsonl(tmp_path / "d.jsonl", [{**item, "label": k} for item, k in zip(items, right, strict=True)])
    assert "no better than" not in run("fit", "--adapter", adapter, "--data", data, "--quiet").stderr


def test_reported_padding_token_and_truncation(folders: Folders, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": "the film " * 40, "label": 0}, *rows(8, 3)])
    options = ["--adapter", folders.llama_three, "--data", data, "--out", tmp_path / "out"]
    result = run("fit", *options)
    assert result.exit_code == 0, result.stderr
    assert "warning: the tokenizer has no padding token; '</s>' is used." in result.stderr
    assert "warning: 1 inputs were cut to 24 tokens; if training saw more of them, give --max-length." in result.stderr


# --- predict -------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_library(folders: Folders, fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "p.jsonl"
    result = run("predict", "--adapter", fitted, "--data", folders.test, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "12 examples: 1 forward and 1 backward passes" in result.stderr
    expected = _in_python(fitted, [row["text"] for row in rows(12, 2, seed=1)])
    found = _predictions(out)
    assert set(tree(out.parent)) == {"p.jsonl"}
    for name in ("probabilities", "map_probabilities", "total_entropy", "aleatoric_entropy", "mutual_information"):
        values = torch.tensor([record[name] for record in found], dtype=torch.float64)
        assert torch.equal(values, getattr(expected, name)), name
    assert [record["label"] for record in found] == expected.prediction.tolist()
    assert [record["confidence"] for record in found] == expected.confidence.tolist()


def test_standard_input_and_output(folders: Folders, fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    run("predict", "--adapter", fitted, "--data", folders.test, "--out", out, "--quiet")
    for content in (folders.test.read_bytes(), "".join(json.dumps(row) + "\n" for row in rows(12, 2, seed=1))):
        piped = run("predict", "--adapter", fitted, "--data", "-", "--out", "-", "--quiet", stdin=content)
        assert piped.exit_code == 0, piped.stderr
        assert piped.stdout == out.read_text()
        assert piped.stderr == ""


def test_predict_needs_no_labels_and_ignores_odd_ones(fitted: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": "the film"}, {"text": "dull", "label": "?"}])
    assert run("predict", "--adapter", fitted, "--data", data, "--out", tmp_path / "p.jsonl").exit_code == 0
    assert len(_predictions(tmp_path / "p.jsonl")) == 2


# --- evaluate ------------------------------------------------------------------------------------------------


def test_evaluate(folders: Folders, fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = write_jsonl(tmp_path / "other.jsonl", [{"premise": "red", "hypothesis": "blue"}] * 5)
    labelled = write_jsonl(tmp_path / "labelled.jsonl", rows(7, 2, seed=3))
    options = ["--validation", folders.train, "--ood", other, "--ood", labelled, "--out", out]
    result = run("evaluate", "--adapter", fitted, "--data", folders.test, *options)
    assert result.exit_code == 0, result.stderr
    assert set(tree(out)) == {"metrics.json", "outputs.safetensors", "predictions.jsonl", "report.html"}
    assert f"{folders.test}, n = 12\n" in result.stdout
    assert "judge Laplace" in result.stdout
    assert f"{labelled}, n = 7\n" in result.stdout
    assert "NLL" in result.stdout or "log loss" in result.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"methods", "prior_precision", "temperature", "seconds", "settings", "versions", "ood"} <= set(metrics)
    assert set(metrics["methods"]) == {"map", "temperature", "laplace"}
    assert metrics["n"] == 12
    assert metrics["data"] == {"file": str(folders.test), "rows": 12}
    assert metrics["ood"][str(other)]["comparison"] is None
    assert metrics["ood"][str(labelled)]["comparison"]["n"] == metrics["ood"][str(labelled)]["n"] == 7
    assert set(load_outputs(out / "outputs.safetensors").ood) == {str(other), str(labelled)}
    assert set(metrics["seconds"]) == {"predict", "temperature"}
    assert metrics["settings"]["data"] == str(folders.test)
    found = _predictions(out / "predictions.jsonl")
    items = rows(12, 2, seed=1)
    assert [record["label"] for record in found] == [item["label"] for item in items]
    assert [record["text"] for record in found] == [item["text"] for item in items]
    expected = _in_python(fitted, [item["text"] for item in items])
    labels = torch.tensor([item["label"] for item in items]).numpy()
    by_hand = compare({"map": expected.map_probabilities.numpy(), "laplace": expected.probabilities.numpy()}, labels)
    for method in ("map", "laplace"):
        for metric in ("accuracy", "nll", "brier", "ece"):
            assert metrics["methods"][method][metric] == by_hand.to_dict()["methods"][method][metric]
    assert [record["prediction"] for record in found] == expected.prediction.tolist()
    assert "<html" in (out / "report.html").read_text()


def test_rows_seen_in_the_fit_are_counted(folders: Folders, fitted: Path, tmp_path: Path) -> None:
    mixed = write_jsonl(tmp_path / "d.jsonl", [*rows(24, 2)[:3], *rows(12, 2, seed=1)])
    options = ["--adapter", fitted, "--out", tmp_path / "out", "--quiet"]
    result = run("evaluate", "--data", mixed, *options)
    assert f"warning: 3 of 15 rows in {mixed} were in the posterior's training data" in result.stderr
    assert run("evaluate", "--data", folders.test, *options).stderr == ""


@pytest.mark.parametrize("count", [1, 2])
def test_a_handful_of_rows_is_enough(count: int, fitted: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", rows(count, 2, seed=5))
    options = ["--validation", data, "--ood", data, "--out", tmp_path / "out"]
    result = run("evaluate", "--adapter", fitted, "--data", data, *options)
    assert result.exit_code == 0, result.stderr
    json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))


# --- train ---------------------------------------------------------------------------------------------------


def test_train_then_fit_then_predict(folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    out = tmp_path / "made" / "adapter"
    data = write_jsonl(tmp_path / "d.jsonl", [{**row, "label": "ny"[row["label"]]} for row in rows(8, 2)])
    options = ["--labels", "n,y", "--epochs", "2", "--rank", "2", "--batch-size", "4", "--max-length", "9"]
    options += ["--validation", data, "--target-modules", "query,value"]
    result = run("train", "--model", folders.bert, "--data", data, "--out", out, *options)
    assert result.exit_code == 0, result.stderr
    document = json.loads((out / TRAINING_CONFIG).read_text())
    assert document["input_format"]["label_names"] == ["n", "y"]
    assert document["input_format"]["max_length"] == 9
    assert document["settings"]["training"]["rank"] == 2
    assert len(list((out / "checkpoints").iterdir())) == 2
    assert not [name for name in tree(out) if name.startswith(".") or name.endswith(".bin")]
    assert any("lora_B" in name for name in load_file(out / "adapter_model.safetensors"))
    # Nothing has to be said again.
    assert run("fit", "--adapter", out, "--data", data, "--quiet").exit_code == 0
    assert json.loads((out / POSTERIOR_CONFIG).read_text())["input_format"] == document["input_format"]
    assert run("predict", "--adapter", out, "--data", data, "--out", tmp_path / "p.jsonl").exit_code == 0
    assert {record["label"] for record in _predictions(tmp_path / "p.jsonl")} <= {"n", "y"}


# --- many classes --------------------------------------------------------------------------------------------


def test_a_hundred_and_fifty_classes(folders: Folders, tmp_path: Path) -> None:
    adapter = copy(folders.many, tmp_path / "adapter")
    data = write_jsonl(tmp_path / "d.jsonl", rows(32, MANY))
    fit = run("fit", "--adapter", adapter, "--data", data)
    assert fit.exit_code == 0, fit.stderr
    # One pass per batch, not 149.
    assert "32 examples, 150 classes, structure kron, Fisher rademacher: 2 forward and 2 backward passes" in fit.stderr
    out = tmp_path / "p.jsonl"
    options = ["--adapter", adapter, "--data", write_jsonl(tmp_path / "few.jsonl", rows(4, MANY)), "--out", out]
    some = run("predict", *options, "--top-k", "5")
    assert some.exit_code == 0, some.stderr
    assert "4 examples: 1 forward and 4 backward passes" in some.stderr
    top = _predictions(out)
    mass = sum(record["neglected_mass"] for record in top) / len(top)
    assert f"the classes beyond the 5 likeliest hold {mass:.4f} of the trained adapter's probability" in some.stderr
    for record in top:
        assert math.isclose(sum(record["probabilities"]), 1.0, abs_tol=1e-9)
        likeliest = sorted(record["map_probabilities"], reverse=True)[:5]
        assert math.isclose(1.0 - sum(likeliest), record["neglected_mass"], abs_tol=1e-9)
    whole = run("predict", *options)
    assert "--top-k 5 would take 4 backward passes per batch instead of 149" in whole.stderr
    for record in _predictions(out):
        assert math.isclose(sum(record["probabilities"]), 1.0, abs_tol=1e-6)
        assert "neglected_mass" not in record


# --- messages ------------------------------------------------------------------------------------------------


def test_json_log(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": "the film " * 40, "label": 0}, *rows(5, 2)])
    runs = [
        run("fit", "--adapter", adapter, "--data", data, "--json-log"),
        run("predict", "--adapter", adapter, "--data", data, "--out", tmp_path / "p", "--json-log"),
        run("evaluate", "--adapter", adapter, "--data", data, "--out", tmp_path / "out", "--json-log"),
        run("fit", "--adapter", tmp_path, "--data", data, "--json-log"),
    ]
    assert [result.exit_code for result in runs] == [0, 0, 0, 1]
    logs = [[json.loads(line) for line in result.stderr.splitlines()] for result in runs]
    assert all(set(entry) >= {"event", "message"} for log in logs for entry in log)
    events = [[entry["event"] for entry in log] for log in logs]
    assert events[0] == ["plan", "fitted", "warning", *(["warning"] * (len(events[0]) - 5)), "prior", "saved"]
    assert events[1] == ["plan", "warning", "saved"]
    assert events[2][-2:] == ["saved", "metrics"]
    assert events[3] == ["error"]
    assert logs[0][0]["backward_passes"] == 1
    assert logs[2][-1]["methods"]["laplace"]["nll"] > 0


def test_quiet_is_silent(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    for arguments in (
        ["fit", "--adapter", adapter, "--data", folders.train, "--quiet"],
        ["predict", "--adapter", adapter, "--data", folders.test, "--out", tmp_path / "p.jsonl", "--quiet"],
        ["evaluate", "--adapter", adapter, "--data", folders.test, "--out", tmp_path / "out", "--quiet"],
    ):
        result = run(*arguments)
        assert (result.exit_code, result.output) == (0, "")


def test_info_says_how_long_inputs_are(fitted: Path, tmp_path: Path) -> None:
    text = run("info", fitted).stdout
    for part in ("structure kron", "fitted to 24 examples", "NLL 0.8053 nats", "classes: 0 to 1, without names"):
        assert part in text
    folder = copy(fitted, tmp_path / "changed")
    edit_json(folder / POSTERIOR_CONFIG, examples=25)
    assert "checksum" in run("info", folder).stderr
