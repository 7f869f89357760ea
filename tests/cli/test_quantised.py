"""The verbs on bases that are quantised as they are loaded."""

import json
from pathlib import Path

import pytest

from cli.folders import bert_tokenizer, copy, error_line, rows, run, write_jsonl
from laplace_lora import LaplaceLoRA, load_adapter
from quantised.needed import require
from quantised.support import base_folder


@pytest.mark.parametrize("quantization", ["nf4", "nf4-double", "int8", "torchao-int8"])
def test_all_verbs(quantization: str, tmp_path: Path) -> None:
    require(quantization)
    items = rows(20, 2)
    data, test = write_jsonl(tmp_path / "train.jsonl", items[:12]), write_jsonl(tmp_path / "test.jsonl", items[12:])
    adapter, quick = tmp_path / "adapter", ("--quiet", "--quantization", quantization)
    base = _with_tokenizer(tmp_path)
    for arguments in (
        ("train", "--model", base, "--data", data, "--out", adapter, "--epochs", "2", *quick),
        ("fit", "--adapter", adapter, "--data", data, *quick),
        ("evaluate", "--adapter", adapter, "--data", test, "--out", tmp_path / "report", *quick),
        ("predict", "--adapter", adapter, "--data", test, "--out", tmp_path / "p.jsonl", *quick),
    ):
        result = run(*arguments)
        assert result.exit_code == 0, (arguments[0], result.stderr)
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["n"] == 8
    model, _, _ = load_adapter(adapter, quantization=quantization)
    LaplaceLoRA.from_pretrained(model, adapter)
    # What the training was quantised by is taken without asking again.
    assert run("predict", "--adapter", adapter, "--data", test, "--out", "-", "--quiet").exit_code == 0
    # The posterior is one of the quantised model: the plain base is another one.
    options = ("--adapter", adapter, "--data", test, "--out", "-", "--quiet", "--quantization", "none")
    plain = error_line(run("predict", *options))
    assert "was fitted to another model: base model weights" in plain or "base model dtype" in plain


def test_an_unknown_way(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "train.jsonl", rows(6, 2))
    options = ("--data", data, "--out", tmp_path / "a", "--quiet", "--quantization", "int2")
    message = error_line(run("train", "--model", _with_tokenizer(tmp_path), *options))
    assert "'int2' is not known; choose one of nf4" in message
    assert not (tmp_path / "a").exists()


def _with_tokenizer(tmp_path: Path) -> Path:
    folder = copy(base_folder("bert"), tmp_path / "base")
    bert_tokenizer().save_pretrained(folder)
    return folder
