"""Situations that people bring: bases with names, without poolers, in half precision; checkpoints; leaking rows."""

import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM

from cli.folders import Folders, bert_tokenizer, error_line, rows, run, write_jsonl
from laplace_lora import load_adapter
from laplace_lora.adapters import read_saved_adapter

pytest.importorskip("accelerate")


def _train(base: Path, out: Path, *options: object) -> Path:
    data = write_jsonl(out.parent / f"{out.name}.jsonl", rows(12, 2))
    result = run("train", "--model", base, "--data", data, "--out", out, "--epochs", 2, "--quiet", *options)
    assert result.exit_code == 0, result.stderr
    return data


def test_the_bases_own_names_are_not_the_tasks(folders: Folders, tmp_path: Path) -> None:
    base = tmp_path / "sentiment"
    model = AutoModelForSequenceClassification.from_pretrained(folders.bert, num_labels=2)
    model.config.id2label = {0: "NEG", 1: "POS"}
    model.save_pretrained(base)
    bert_tokenizer().save_pretrained(base)
    data = _train(base, tmp_path / "adapter")
    assert load_adapter(tmp_path / "adapter")[2] is None
    assert run("fit", "--adapter", tmp_path / "adapter", "--data", data, "--quiet").exit_code == 0
    assert load_adapter(tmp_path / "adapter")[2] is None
    result = run("predict", "--adapter", tmp_path / "adapter", "--data", data, "--out", "-", "--quiet")
    assert {json.loads(line)["label"] for line in result.stdout.splitlines()} <= {0, 1}


def test_layers_without_weights_are_trained_and_saved(tmp_path: Path, folders: Folders) -> None:
    """A masked language model has no pooler; a random one must not stay random and unsaved."""
    base = tmp_path / "masked"
    BertForMaskedLM(AutoModelForSequenceClassification.from_pretrained(folders.bert).config).save_pretrained(base)
    bert_tokenizer().save_pretrained(base)
    data = _train(base, tmp_path / "adapter")
    assert any("pooler.dense.weight" in name for name in read_saved_adapter(tmp_path / "adapter").shapes)
    assert run("fit", "--adapter", tmp_path / "adapter", "--data", data, "--quiet").exit_code == 0
    assert "bert.pooler.dense" in run("info", tmp_path / "adapter").stdout


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_bases_are_trained_in_single(dtype: torch.dtype, folders: Folders, tmp_path: Path) -> None:
    base = tmp_path / "half"
    model = AutoModelForSequenceClassification.from_pretrained(folders.bert, num_labels=2).to(dtype)
    model.save_pretrained(base)
    bert_tokenizer().save_pretrained(base)
    _train(base, tmp_path / "adapter")
    trained = load_adapter(tmp_path / "adapter", dtype=torch.float32)[0]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in trained.parameters())
    with pytest.warns(UserWarning, match=r"is saved in float32 and rounded to .*; load the base in float32"):
        load_adapter(tmp_path / "adapter")


def test_training_pads_as_fit_does(folders: Folders, tmp_path: Path) -> None:
    base = tmp_path / "left"
    AutoModelForSequenceClassification.from_pretrained(folders.bert).save_pretrained(base)
    tokenizer = bert_tokenizer()
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(base)
    _train(base, tmp_path / "adapter")
    assert load_adapter(tmp_path / "adapter")[1].padding_side == "right"


def test_every_checkpoint_is_an_adapter(folders: Folders, tmp_path: Path) -> None:
    options = ["--labels", "bad,good", "--template", "so {{ text }}", "--max-length", 9]
    data = _train(folders.bert, tmp_path / "adapter", *options)
    checkpoint = min((tmp_path / "adapter" / "checkpoints").iterdir())
    assert run("fit", "--adapter", checkpoint, "--data", data, "--quiet").exit_code == 0
    said = run("info", checkpoint).stdout
    assert "so {{ text }}" in said
    assert "at most 9 tokens" in said
    assert "bad, good" in said


def test_leaking_rows_are_counted(folders: Folders, adapter: Path, fitted: Path, tmp_path: Path) -> None:
    same = ["--data", folders.train, "--validation", folders.train]
    assert "24 of 24 rows" in run("fit", "--adapter", adapter, *same).stderr
    result = run(
        "evaluate", "--adapter", fitted, "--data", folders.test, "--validation", folders.train, "--out", tmp_path / "r"
    )
    assert "24 of 24 rows" in result.stderr
    assert "temperature" in result.stderr


def test_validation_data_that_would_go_unused(folders: Folders, adapter: Path) -> None:
    both = ["--data", folders.train, "--validation", folders.test]
    line = error_line(run("fit", "--adapter", adapter, *both, "--prior", "evidence"))
    assert "leave out --validation" in line


def test_a_foreign_file_of_trainings_name(folders: Folders, adapter: Path) -> None:
    (adapter / "training_config.json").write_text('{"lr": 0.001}')
    assert run("fit", "--adapter", adapter, "--data", folders.train, "--quiet").exit_code == 0


def test_the_dtype_of_the_fit_is_named(folders: Folders, adapter: Path) -> None:
    assert run("fit", "--adapter", adapter, "--data", folders.train, "--quiet", "--dtype", "bfloat16").exit_code == 0
    line = error_line(run("predict", "--adapter", adapter, "--data", folders.train, "--out", "-"))
    assert "--dtype bfloat16" in line


def test_a_padding_token_that_was_added_before_training(folders: Folders, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders.llama)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model = AutoModelForSequenceClassification.from_pretrained(folders.llama, num_labels=2)
    model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"])).eval()
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    loaded, again, _ = load_adapter(tmp_path / "adapter")
    assert again.pad_token == "<pad>"
    texts = [row["text"] for row in rows(4, 2)]
    batch = dict(again(texts, padding=True, return_tensors="pt"))
    torch.testing.assert_close(loaded(**batch).logits, adapted(**batch).logits)
    data = write_jsonl(tmp_path / "train.jsonl", rows(8, 2))
    for verb in (["fit"], ["predict", "--out", tmp_path / "p.jsonl"]):
        result = run(*verb, "--adapter", tmp_path / "adapter", "--data", data, "--quiet")
        assert result.exit_code == 0, result.stderr
