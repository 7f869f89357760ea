"""Every way to fail: one line that says what, where and what to do, and not a byte changed on disk."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from cli.folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    POSTERIOR_CONFIG,
    POSTERIOR_WEIGHTS,
    Folders,
    copy,
    edit_json,
    edited_tensors,
    error_line,
    refused,
    rows,
    run,
    tree,
    write_jsonl,
)
from laplace_lora.commands import output
from laplace_lora.persistence import files


@pytest.fixture
def shop(folders: Folders, fitted: Path, tmp_path: Path) -> Folders:
    """Return a workshop of its own: the fitted adapter as ``two``, the base shared."""
    made = Folders(tmp_path / "shop")
    copy(fitted, made.two)
    made.train.write_bytes(folders.train.read_bytes())
    made.test.write_bytes(folders.test.read_bytes())
    return made


def _verb(verb: str, shop: Folders) -> list[object]:
    return {
        "fit": ["fit", "--adapter", shop.two, "--data", shop.train, "--out", shop.root / "out" / "deep"],
        "predict": ["predict", "--adapter", shop.two, "--data", shop.test, "--out", shop.root / "out" / "p.jsonl"],
        "evaluate": ["evaluate", "--adapter", shop.two, "--data", shop.test, "--out", shop.root / "out" / "deep"],
    }[verb]


# --- data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"text": "dull", "label": 2}', ":2: the label 2 is not an index from 0 to 1"),
        ('{"text": "dull", "label": "good"}', ":2: the label 'good' is a name"),
        ('{"text": "dull"}', ":2 has no label"),
        ('{"text": ', ":2 is not a JSON object"),
        ('{"sentence": "dull", "label": 0}', ":2 lacks the field 'text'"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_a_bad_row(verb: str, line: str, part: str, shop: Folders) -> None:
    data = shop.root / "bad.jsonl"
    data.write_text(json.dumps(rows(1, 2)[0]) + "\n" + line + "\n")
    assert part in refused(shop.root, *_verb(verb, shop), "--data", data)


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict"])
def test_data_that_are_empty_or_not_there(verb: str, shop: Folders) -> None:
    (shop.root / "empty.csv").write_text("text,label\n")
    assert "has no rows" in refused(shop.root, *_verb(verb, shop), "--data", shop.root / "empty.csv")
    assert "No such file" in refused(shop.root, *_verb(verb, shop), "--data", shop.root / "none.csv")
    assert "Is a directory" in refused(shop.root, *_verb(verb, shop), "--data", shop.root)
    for option in ("--validation", "--ood") if verb == "evaluate" else ("--validation",) if verb == "fit" else ():
        assert "No such file" in refused(shop.root, *_verb(verb, shop), option, shop.root / "none.csv")


def test_standard_input_is_named(shop: Folders) -> None:
    arguments = [*_verb("predict", shop), "--data", "-"]
    assert (
        refused(shop.root, *arguments, stdin="") == "standard input has no rows; give a file with at least one example."
    )
    assert refused(shop.root, *arguments, stdin='{"text": \n').startswith("standard input:1 is not a JSON object")
    assert refused(shop.root, *arguments, stdin=b"\xff").startswith("standard input:")


# --- adapter and posterior -----------------------------------------------------------------------------------


def test_no_posterior(shop: Folders) -> None:
    (shop.two / POSTERIOR_CONFIG).unlink()
    for verb in ("predict", "evaluate"):
        assert f"{POSTERIOR_CONFIG} does not exist; fit a posterior" in refused(shop.root, *_verb(verb, shop))
    assert f"{POSTERIOR_CONFIG} does not exist" in refused(shop.root, "info", shop.two)
    assert "is not a folder" in refused(shop.root, "info", shop.root / "none")


def test_a_posterior_of_another_adapter(folders: Folders, shop: Folders) -> None:
    options = ["--adapter", folders.three, "--posterior", shop.two]
    assert "fitted to another model" in refused(shop.root, *_verb("predict", shop), *options)
    with edited_tensors(shop.two / ADAPTER_WEIGHTS) as tensors:
        next(value for name, value in tensors.items() if "lora_B" in name)[0, 0] += 1e-3
    for verb in ("predict", "evaluate"):
        message = refused(shop.root, *_verb(verb, shop))
        assert "fitted to another model: adapter weights (fitted: " in message


@pytest.mark.parametrize("name", [POSTERIOR_WEIGHTS, ADAPTER_WEIGHTS])
def test_truncated_tensors(name: str, shop: Folders) -> None:
    whole = (shop.two / name).read_bytes()
    (shop.two / name).write_bytes(whole[: len(whole) // 2])
    assert str(shop.two / name) in refused(shop.root, *_verb("predict", shop))


def test_adapters_that_are_none(folders: Folders, shop: Folders) -> None:
    for verb in ("fit", "predict", "evaluate"):
        assert "holds a whole model" in refused(shop.root, *_verb(verb, shop), "--adapter", folders.bert)
    edit_json(shop.two / ADAPTER_CONFIG, peft_type="IA3")
    assert "of type IA3, not LORA" in refused(shop.root, *_verb("fit", shop))
    edit_json(shop.two / ADAPTER_CONFIG, peft_type="LORA", base_model_name_or_path=None)
    assert "--base" in refused(shop.root, *_verb("fit", shop))
    edit_json(shop.two / ADAPTER_CONFIG, base_model_name_or_path=str(folders.bert), bias="all")
    assert refused(shop.root, *_verb("fit", shop))


def test_activations_that_overflow_name_their_module(folders: Folders, shop: Folders) -> None:
    base = copy(folders.bert, shop.root / "base")
    with edited_tensors(base / "model.safetensors") as tensors:
        tensors["encoder.layer.1.output.dense.weight"].fill_(3e38)
    message = refused(shop.root, *_verb("fit", shop), "--base", base)
    assert "layer.1.output" in message
    assert "turns finite inputs into NaN or infinity" in message


def test_gradients_that_overflow(shop: Folders) -> None:
    with edited_tensors(shop.two / ADAPTER_WEIGHTS) as tensors:
        tensors["base_model.model.classifier.weight"].fill_(1e25)
    for structure in ("kron", "diag", "last_layer"):
        result = run(*_verb("fit", shop), "--structure", structure)
        if result.exit_code:
            error_line(result)
        else:
            assert run("info", shop.root / "out" / "deep").exit_code == 0


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--prior", "0"], "positive number"),
        (["--prior", "nan"], "positive number"),
        (["--prior", "much"], "not known"),
        (["--prior", "validation"], "--validation"),
        (
            ["--structure", "cube"],
            "choose one of kron, kron_svd, ekfac, diag, exact, low_rank, kron_low_rank, isotropic, last_layer",
        ),
        (["--fisher", "none"], "choose one of"),
        (["--target-modules", "gate"], "no trained module is named 'gate'"),
        (["--layers-to-transform", "7"], "the adapter has no layer 7; it has 0"),
        (["--layers-to-transform", "top"], "'top' is no list of whole numbers; write 0,1 or -2,-1"),
        (["--prior-groups", "layer"], "choose one of"),
        (["--predictive", "simpson"], "choose one of integral, probit, laplace_bridge, mc"),
        (["--dtype", "int8"], "choose one of"),
        (["--device", "cuda:99"], "--device cpu"),
        (["--labels", "a"], "1 label names (a) for 2 classes"),
        (["--labels", "a,a"], "repeat"),
        (["--max-length", "25"], "24 positions"),
        (["--template", "{{ text"], "malformed"),
        (["--template", "{{ story }}"], "lacks the field 'story'"),
    ],
)
def test_settings_of_fit(options: list[str], part: str, shop: Folders) -> None:
    assert part in refused(shop.root, *_verb("fit", shop), *options)


def test_more_top_classes_than_there_are(shop: Folders) -> None:
    assert "--top-k 3 is more than the adapter's 2 classes" in refused(shop.root, *_verb("predict", shop), "--top-k", 3)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (["--labels", "a"], "--labels a,b,c"),
        (["--model", "/nowhere/at/all"], "the base model /nowhere/at/all cannot be loaded"),
        (["--target-modules", "nothing"], "--target-modules"),
        (["--max-length", "99"], "24 positions"),
    ],
)
def test_settings_of_train(change: list[str], part: str, folders: Folders, shop: Folders) -> None:
    pytest.importorskip("accelerate")
    train = ["train", "--model", folders.bert, "--data", shop.train, "--out", shop.root / "new", "--epochs", 1]
    assert part in refused(shop.root, *train, *change)
    assert "is not empty" in refused(shop.root, *train, "--out", shop.two)
    gaps = write_jsonl(shop.root / "gaps.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 2}])
    assert "no row of class 1" in refused(shop.root, *train, "--data", gaps)
    names = write_jsonl(shop.root / "names.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    assert "--labels a,b,c" in refused(shop.root, *train, "--data", names)


def test_a_training_that_diverges_saves_nothing(
    folders: Folders, shop: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")

    def diverge(model: Any, *_: object, **__: object) -> None:
        next(p for p in model.parameters() if p.requires_grad).data.fill_(torch.nan)

    monkeypatch.setattr(sys.modules["laplace_lora.commands.train"], "fine_tune", diverge)
    train = ["train", "--model", folders.bert, "--data", shop.train, "--out", shop.root / "new"]
    assert "the training diverged: base_model.model.bert" in refused(shop.root, *train)


def test_a_training_that_fails_half_way_leaves_no_folder(
    folders: Folders, shop: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.Trainer.save_model", fail)
    before = tree(shop.root)
    result = run("train", "--model", folders.bert, "--data", shop.train, "--out", shop.root / "new" / "er")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "laplace-lora: interrupted; nothing was written."
    assert tree(shop.root) == before


# --- output --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["fit", "predict", "evaluate"])
def test_places_that_cannot_be_written(verb: str, shop: Folders) -> None:
    below = shop.train / "below"
    assert "is not a folder" in refused(shop.root, *_verb(verb, shop), "--out", below / "x")
    long = shop.root / ("x" * 5000) / "y"
    assert "File name too long" in refused(shop.root, *_verb(verb, shop), "--out", long)


def test_predict_spares_folders_and_its_own_input(shop: Folders) -> None:
    assert "is a folder; name a file in it" in refused(shop.root, *_verb("predict", shop), "--out", shop.two)
    assert "is the data that is read" in refused(shop.root, *_verb("predict", shop), "--out", shop.test)


def test_evaluate_spares_folders_of_its_files_names(shop: Folders) -> None:
    (shop.root / "out" / "deep" / "report.html").mkdir(parents=True)
    (shop.root / "out" / "deep" / "metrics.json").write_text("old")
    assert "report.html is in the way" in refused(shop.root, *_verb("evaluate", shop))


def test_a_read_only_place(shop: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(output.tempfile, "TemporaryFile", refuse)
    for verb in ("fit", "predict", "evaluate"):
        assert "cannot be written (Permission denied)" in refused(shop.root, *_verb(verb, shop))


def _full(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def _full_rust(*_: object, **__: object) -> Any:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


FULL: dict[str, tuple[str, object, str, Callable[..., Any]]] = {
    "tensors of a posterior": ("fit", files, "save_file", _full_rust),
    "its description": ("fit", files.os, "fsync", _full),
    "moving it": ("fit", files.os, "replace", _full),
    "predictions": ("predict", output.os, "fsync", _full),
    "moving predictions": ("predict", output.os, "replace", _full),
    "a report": ("evaluate", output.os, "fsync", _full),
    "moving a report": ("evaluate", output.os, "replace", _full),
}


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk(kind: str, there: bool, shop: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, owner, name, full = FULL[kind]
    if there:  # an older result survives
        assert run(*_verb(verb, shop)).exit_code == 0
    monkeypatch.setattr(owner, name, full)
    message = refused(shop.root, *_verb(verb, shop))
    assert "No space left on device" in message
    assert "Free space or give another place" in message


def test_a_crash_between_two_files_puts_the_old_ones_back(shop: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*_verb("evaluate", shop)).exit_code == 0
    real = os.replace
    calls: Iterator[int] = iter(range(100))

    def third_fails(*arguments: Any) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments)

    before = tree(shop.root)
    monkeypatch.setattr(output.os, "replace", third_fails)
    result = run(*_verb("evaluate", shop), "--quiet")
    assert result.exit_code == 130
    assert tree(shop.root) == before


# --- bugs, memory, interruptions -----------------------------------------------------------------------------


def test_bugs_and_full_memory_are_told_apart(shop: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    from laplace_lora import commands

    def fail(error: Exception) -> Callable[..., None]:
        def raise_it(*_: object) -> None:
            raise error

        return raise_it

    monkeypatch.setattr(commands, "predict", fail(ZeroDivisionError("one\ntwo")))
    result = run(*_verb("predict", shop))
    assert result.exit_code == 70
    assert result.stderr.startswith("laplace-lora: internal error, ZeroDivisionError: one. Please report it; ")
    assert result.stderr.count("\n") == 1
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        monkeypatch.setattr(commands, "predict", fail(error))
        assert "--batch-size" in refused(shop.root, *_verb("predict", shop))
    monkeypatch.setattr(commands, "predict", fail(PermissionError(13, "Permission denied", "some/file")))
    assert "some/file: Permission denied" in refused(shop.root, *_verb("predict", shop))


def _start(arguments: list[object], **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "laplace_lora.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("verb", "sent", "status"),
    [("fit", signal.SIGINT, 130), ("predict", signal.SIGINT, 130), ("predict", signal.SIGTERM, 143)],
)
def test_an_interrupted_run_leaves_nothing(verb: str, sent: signal.Signals, status: int, shop: Folders) -> None:
    data = write_jsonl(shop.root / "many.jsonl", rows(200, 2) * 100)
    before = tree(shop.root)
    process = _start([*_verb(verb, shop), "--data", data, "--batch-size", "1", "--json-log"])
    assert process.stderr is not None
    assert '"plan"' in process.stderr.readline()
    time.sleep(0.3)  # in the middle of the rows
    assert process.poll() is None
    process.send_signal(sent)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == status
    assert [json.loads(line)["event"] for line in rest.splitlines()] == ["error"]
    assert "nothing was written" in rest
    assert tree(shop.root) == before


def test_a_disk_that_is_really_full(shop: Folders) -> None:
    """A limit on the size of files stands in for the disk."""
    data = write_jsonl(shop.root / "many.jsonl", rows(200, 2))
    before = tree(shop.root)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    for verb in ("predict", "fit"):
        process = _start([*_verb(verb, shop), "--data", data], preexec_fn=limit)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1, errors
        assert "Traceback" not in errors
        line = errors.splitlines()[-1]
        assert line.startswith("laplace-lora: ")
        assert "cannot be written" in line
        assert tree(shop.root) == before


def test_standard_output_that_is_closed(shop: Folders) -> None:
    process = _start([*_verb("predict", shop), "--out", "-", "--quiet"])
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1
