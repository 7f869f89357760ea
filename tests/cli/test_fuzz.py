"""Spoilt files of every kind are thrown at the command line: one clear line, nothing half-written, no stack trace."""

import functools
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cli.folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    POSTERIOR_CONFIG,
    POSTERIOR_WEIGHTS,
    TRAINING_CONFIG,
    Folders,
    bert_tokenizer,
    copy,
    edit_json,
    run,
    tree,
)
from cli.mutations import spoilt_bytes, spoilt_json, spoilt_lines
from laplace_lora.persistence.files import _document_digest, file_digest

PREDICTION = {"label", "confidence", "probabilities", "map_probabilities", "mutual_information"}
EVALUATION = {"metrics.json", "outputs.safetensors", "predictions.jsonl", "report.html"}


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on so many examples, always the same ones."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def workshop(folders: Folders, fitted: Path) -> Iterator[Folders]:
    """Copy base, adapter with posterior, and data; the adapter points at the copy of the base."""
    with tempfile.TemporaryDirectory() as name:
        shop = Folders(Path(name))
        copy(folders.bert, shop.bert)
        copy(fitted, shop.two)
        edit_json(shop.two / ADAPTER_CONFIG, base_model_name_or_path=str(shop.bert))
        shutil.copy(folders.train, shop.train)
        shutil.copy(folders.test, shop.test)
        (shop.root / "out").mkdir()
        (shop.root / "out" / "mine.txt").write_text("keep me")
        yield shop


def check(shop: Folders, verb: str) -> int:
    """Run a verb on a workshop: it succeeds wholly or fails with one line and writes nothing."""
    out = shop.root / "out"
    arguments: dict[str, list[object]] = {
        "fit": ["--adapter", shop.two, "--data", shop.train, "--out", out],
        "predict": ["--adapter", shop.two, "--data", shop.test, "--out", out / "p.jsonl"],
        "evaluate": ["--adapter", shop.two, "--data", shop.test, "--out", out],
        "info": [shop.two],
    }
    before = tree(shop.root)
    result = run(verb, *arguments[verb])
    assert result.exit_code in (0, 1), (result.exit_code, result.stderr[-2000:])
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("laplace-lora: ")]
    after = tree(shop.root)
    if result.exit_code:
        assert len(errors) == 1, result.stderr
        assert result.stderr.rstrip("\n").endswith(errors[0])
        assert errors[0].endswith("."), errors[0]
        assert len(errors[0]) < 7000
        assert after == before
        return result.exit_code
    assert not errors
    assert {name: after[name] for name in before} == before
    new = {Path(name).name for name in set(after) - set(before)}
    if verb == "fit":
        assert new == {POSTERIOR_CONFIG, POSTERIOR_WEIGHTS}
        assert run("info", out).exit_code == 0
    elif verb == "predict":
        assert new == {"p.jsonl"}
        lines = (out / "p.jsonl").read_text(encoding="utf-8").splitlines()
        assert lines
        for line in lines:
            record = json.loads(line, parse_constant=_no_constant)
            assert set(record) >= PREDICTION
            assert abs(sum(record["probabilities"]) - 1) < 1e-6
    elif verb == "evaluate":
        assert new == EVALUATION
        json.loads((out / "metrics.json").read_text(), parse_constant=_no_constant)
    return result.exit_code


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _sign(folder: Path, document: dict[str, Any] | None = None) -> None:
    """Make a posterior's checksums fit what is there, so that only a deeper look can tell."""
    path = folder / POSTERIOR_CONFIG
    document = json.loads(path.read_text()) if document is None else document
    if not isinstance(document, dict):
        return
    if isinstance(document.get("tensors_sha256"), str):
        document["tensors_sha256"] = file_digest(folder / POSTERIOR_WEIGHTS)
    document.pop("config_sha256", None)
    try:
        document["config_sha256"] = _document_digest(document)
    except ValueError:  # NaN has no checksum
        document["config_sha256"] = "0" * 64
    path.write_text(json.dumps(document))


@functools.cache
def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# --- data ----------------------------------------------------------------------------------------------------


@fuzz(25)
@given(data=st.data(), suffix=st.sampled_from([".jsonl", ".csv", ""]))
def test_bytes_of_data(folders: Folders, fitted: Path, data: st.DataObject, suffix: str) -> None:
    spoilt = data.draw(spoilt_bytes((folders.test if suffix == ".csv" else folders.train).read_bytes()))
    with workshop(folders, fitted) as shop:
        path = shop.root / f"data{suffix}"
        path.write_bytes(spoilt)
        _run_on(shop, path, data.draw(st.sampled_from(["fit", "predict", "evaluate"])))


@fuzz(40)
@given(data=st.data())
def test_lines_of_data(folders: Folders, fitted: Path, data: st.DataObject) -> None:
    spoilt = data.draw(spoilt_lines(_text(folders.train).splitlines()))
    with workshop(folders, fitted) as shop:
        path = shop.root / "data.jsonl"
        path.write_text(spoilt)
        _run_on(shop, path, data.draw(st.sampled_from(["fit", "predict", "evaluate"])))


def _run_on(shop: Folders, path: Path, verb: str) -> None:
    shutil.move(path, shop.train if verb == "fit" else shop.test.with_suffix(path.suffix))
    if verb != "fit" and path.suffix != ".csv":
        shop.test.unlink(missing_ok=True)
        shop = _Renamed(shop.root, path.suffix)
    check(shop, verb)


class _Renamed(Folders):
    def __init__(self, root: Path, suffix: str) -> None:
        super().__init__(root)
        object.__setattr__(self, "_suffix", suffix)

    test = property(lambda self: self.root / f"test{self._suffix}")


# --- configurations ------------------------------------------------------------------------------------------


@fuzz(50)
@given(data=st.data())
def test_adapter_config(folders: Folders, fitted: Path, data: st.DataObject) -> None:
    document = json.loads(_text(fitted / ADAPTER_CONFIG))
    with workshop(folders, fitted) as shop:
        document["base_model_name_or_path"] = str(shop.bert)
        (shop.two / ADAPTER_CONFIG).write_text(data.draw(spoilt_json(document)))
        check(shop, data.draw(st.sampled_from(["fit", "predict"])))


@fuzz(40)
@given(data=st.data())
def test_base_config(folders: Folders, fitted: Path, data: st.DataObject) -> None:
    spoilt = data.draw(spoilt_json(json.loads(_text(folders.bert / "config.json"))))
    with workshop(folders, fitted) as shop:
        (shop.bert / "config.json").write_text(spoilt)
        check(shop, data.draw(st.sampled_from(["fit", "predict"])))


@fuzz(15)
@given(data=st.data())
def test_training_config(folders: Folders, fitted: Path, data: st.DataObject) -> None:
    form = {
        "label_names": ["bad", "good"],
        "template": "{{ text }}",
        "max_length": 12,
        "padding_side": "right",
        "pair_template": None,
    }
    spoilt = data.draw(spoilt_json({"library_version": "0.1.0", "input_format": form, "settings": {}}))
    with workshop(folders, fitted) as shop:
        (shop.two / TRAINING_CONFIG).write_text(spoilt)
        (shop.two / POSTERIOR_CONFIG).unlink()
        check(shop, "fit")


@fuzz(40)
@given(data=st.data())
def test_tokenizer(folders: Folders, fitted: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    spoilt = data.draw(spoilt_json(json.loads(_text(folders.bert / name))))
    with workshop(folders, fitted) as shop:
        bert_tokenizer().save_pretrained(shop.two)
        (shop.two / name).write_text(spoilt)
        check(shop, data.draw(st.sampled_from(["fit", "predict"])))


@fuzz(60)
@given(data=st.data(), signed=st.sampled_from([True, True, True, False]))
def test_posterior_config(folders: Folders, fitted: Path, data: st.DataObject, signed: bool) -> None:
    spoilt = data.draw(spoilt_json(json.loads(_text(fitted / POSTERIOR_CONFIG))))
    with workshop(folders, fitted) as shop:
        (shop.two / POSTERIOR_CONFIG).write_text(spoilt)
        if signed and not spoilt.startswith("[["):
            _sign(shop.two)
        check(shop, data.draw(st.sampled_from(["info", "predict", "evaluate", "fit"])))


@fuzz(15)
@given(data=st.data())
def test_bytes_of_configurations(folders: Folders, fitted: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([ADAPTER_CONFIG, POSTERIOR_CONFIG]))
    spoilt = data.draw(spoilt_bytes(_text(fitted / name).encode()))
    with workshop(folders, fitted) as shop:
        (shop.two / name).write_bytes(spoilt)
        check(shop, "predict")


# --- tensors -------------------------------------------------------------------------------------------------


@fuzz(40)
@given(data=st.data())
def test_bytes_of_tensors(folders: Folders, fitted: Path, data: st.DataObject) -> None:
    with workshop(folders, fitted) as shop:
        files = [shop.two / ADAPTER_WEIGHTS, shop.two / POSTERIOR_WEIGHTS, shop.bert / "model.safetensors"]
        path = data.draw(st.sampled_from(files))
        whole = path.read_bytes()
        size = 8 + struct.unpack("<Q", whole[:8])[0]
        # As often in the header as in the values, which are many more.
        head = data.draw(st.booleans())
        spoilt = data.draw(spoilt_bytes(whole[:size] if head else whole))
        path.write_bytes(spoilt + whole[size:] if head else spoilt)
        if path.name == POSTERIOR_WEIGHTS and data.draw(st.booleans()):
            _sign(shop.two)
        check(shop, data.draw(st.sampled_from(["fit", "predict", "info"])))


SPOILT_TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "gone": lambda tensor: None,
    "NaN": lambda tensor: torch.full_like(tensor.double(), torch.nan),
    "infinite": lambda tensor: torch.full_like(tensor.double(), torch.inf),
    "huge": lambda tensor: torch.full_like(tensor.double(), 1e300),
    "large": lambda tensor: torch.full_like(tensor.double(), 1e30),
    "negative": lambda tensor: -torch.ones_like(tensor),
    "zero": lambda tensor: torch.zeros_like(tensor),
    "whole numbers": lambda tensor: torch.zeros_like(tensor, dtype=torch.int32),
    "flags": lambda tensor: torch.zeros_like(tensor, dtype=torch.bool),
    "half": lambda tensor: tensor.half(),
    "flat": lambda tensor: tensor.flatten(),
    "longer": lambda tensor: torch.cat([tensor, tensor]),
    "empty": lambda tensor: tensor[:0],
    "one number": lambda tensor: torch.zeros(()),
}


@fuzz(60)
@given(data=st.data(), kind=st.sampled_from(sorted(SPOILT_TENSORS)))
def test_values_of_tensors(folders: Folders, fitted: Path, data: st.DataObject, kind: str) -> None:
    with workshop(folders, fitted) as shop:
        files = [shop.two / POSTERIOR_WEIGHTS, shop.two / ADAPTER_WEIGHTS, shop.bert / "model.safetensors"]
        path = data.draw(st.sampled_from(files))
        tensors = load_file(path)
        name = data.draw(st.sampled_from(sorted(tensors)))
        spoilt = SPOILT_TENSORS[kind](tensors[name])
        tensors = {key: tensor.clone() for key, tensor in tensors.items() if key != name}
        if spoilt is not None:
            tensors[name if data.draw(st.integers(0, 9)) else f"{name}.x"] = spoilt.contiguous()
        save_file(tensors, path, metadata={"format": "pt"})
        _sign(shop.two)
        check(shop, data.draw(st.sampled_from(["predict", "fit", "info"])))
