"""How ``fit`` chooses the prior: what each way writes and says, that it is the library's, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from cli.folders import Folders, run, write_jsonl
from laplace_lora import LaplaceLoRA, load_adapter
from laplace_lora.data import FoldRows, open_rows

START = "starting_point.safetensors"


@pytest.fixture(scope="session")
def trained(folders: Folders) -> Path:
    """An adapter by ``train``, with checkpoints."""
    out = folders.root / "trained-here"
    result = _train(folders, out)
    assert result.exit_code == 0, result.stderr
    return out


def _train(folders: Folders, out: Path, *more: Any) -> Any:
    arguments = ["--model", folders.bert, "--data", folders.train, "--epochs", "3", "--batch-size", "8", "--rank", "2"]
    return run("train", *arguments, "--out", out, "--quiet", *more)


def _fit(folders: Folders, adapter: Path, out: Path, *more: Any) -> dict[str, Any]:
    result = run("fit", "--adapter", adapter, "--data", folders.train, "--out", out, "--json-log", *more)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    config = json.loads((out / "posterior_config.json").read_text(encoding="utf-8"))
    return {"said": lines, "config": config, "prior": next(line for line in lines if line["event"] == "prior")}


def test_train_leaves_what_the_adapter_was(folders: Folders, trained: Path, tmp_path: Path) -> None:
    """The same start beside every checkpoint; with no step to speak of, the adapter is its own start."""
    start = load_file(trained / START)
    assert start.keys() == load_file(trained / "adapter_model.safetensors").keys()
    assert all(float(value.abs().max()) == 0.0 for key, value in start.items() if "lora_B" in key)
    for checkpoint in (trained / "checkpoints").iterdir():
        again = load_file(checkpoint / START)
        assert all(torch.equal(again[key], value) for key, value in start.items())
    result = _train(folders, tmp_path / "still", "--learning-rate", "0", "--steps", "1")
    assert result.exit_code == 0, result.stderr
    weights = load_file(tmp_path / "still" / "adapter_model.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in start.items())


def test_the_evidence_knows_the_start(folders: Folders, trained: Path, tmp_path: Path) -> None:
    by_start = _fit(folders, trained, tmp_path / "start", "--prior", "evidence")
    by_zero = _fit(folders, trained, tmp_path / "zero", "--prior", "evidence", "--prior-mean", "zero")
    assert by_start["config"]["squared_distances"] is not None
    assert by_zero["config"]["squared_distances"] is None
    # What has moved little needs little room.
    assert by_start["prior"]["prior_precision"] > by_zero["prior"]["prior_precision"]
    model, _, _ = load_adapter(trained)
    la = LaplaceLoRA.from_pretrained(model, tmp_path / "start")
    again = LaplaceLoRA.from_pretrained(model, tmp_path / "zero")
    again.tune_prior("evidence", starting_point=load_file(trained / START))
    assert again.prior_precision == pytest.approx(la.prior_precision, rel=1e-6)


def test_an_adapter_without_its_start_is_centred_on_zero(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    assert _fit(folders, adapter, tmp_path / "plain")["config"]["squared_distances"] is None
    result = run("fit", "--adapter", adapter, "--data", folders.train, "--prior-mean", "start")
    assert result.exit_code == 1
    assert START in result.stderr
    assert "--prior-mean zero" in result.stderr


def test_validation_chooses_a_temperature_too(folders: Folders, trained: Path, tmp_path: Path) -> None:
    found = _fit(folders, trained, tmp_path / "warm", "--validation", folders.test)
    assert found["prior"]["temperature"] == found["config"]["temperature"] != 1.0
    assert f"{found['config']['temperature']:.4g}" in run("info", tmp_path / "warm").stdout
    cold = _fit(folders, trained, tmp_path / "cold", "--validation", folders.test, "--no-temperature")
    assert cold["config"]["temperature"] == 1.0
    brier = _fit(folders, trained, tmp_path / "brier", "--validation", folders.test, "--score", "brier")
    assert brier["config"]["prior_precision"] != found["config"]["prior_precision"]


def test_roles_by_the_command_line(folders: Folders, trained: Path, tmp_path: Path) -> None:
    found = _fit(folders, trained, tmp_path / "roles", "--validation", folders.test, "--prior-groups", "role")
    assert list(found["prior"]["prior_precision"]) == ["lora_A", "lora_B", "head"]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_cross_fitting_trains_on_all_rows_but_a_fold(
    folders: Folders, trained: Path, tmp_path: Path, checkpoint: bool
) -> None:
    """The same as training the folds' adapters by hand, as far as this one was trained, and handing them over."""
    adapter = min((trained / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    adapter = adapter if checkpoint else trained
    found = _fit(folders, adapter, tmp_path / "cross", "--prior", "cross-fit", "--folds", "2")
    assert [line["fold"] for line in found["said"] if line["event"] == "fold"] == [0, 1]
    assert found["config"]["tuned_by"] == "cross_fit"
    assert "cross-fit" in run("info", tmp_path / "cross").stdout

    model, _, _ = load_adapter(adapter)
    whole = LaplaceLoRA.from_pretrained(model, tmp_path / "cross")
    by_hand = []
    for fold in range(2):
        kept, held_out = (
            [row.fields for row in FoldRows(folders.train, fold, 2, 2, held_out=held).rows()] for held in (False, True)
        )
        data = write_jsonl(tmp_path / f"train{fold}.jsonl", kept)
        out = tmp_path / f"fold{fold}"
        arguments = ["--model", folders.bert, "--data", data, "--epochs", "3", "--batch-size", "8", "--rank", "2"]
        assert run("train", *arguments, "--out", out, "--quiet").exit_code == 0
        if checkpoint:
            out = min((out / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
        assert run("fit", "--adapter", out, "--data", data, "--quiet", "--prior", "1").exit_code == 0
        its, tokenizer, _ = load_adapter(out)
        batch = dict(tokenizer([r["text"] for r in held_out], return_tensors="pt", padding=True))
        batch["labels"] = torch.tensor([int(r["label"]) for r in held_out])
        by_hand.append((LaplaceLoRA.from_pretrained(its, out), [batch]))
    # From the same start as the command did.
    assert (
        run("fit", "--adapter", adapter, "--data", folders.train, "--prior", "1", "--out", tmp_path / "w").exit_code
        == 0
    )
    again = LaplaceLoRA.from_pretrained(model, tmp_path / "w")
    again.tune_prior("cross_fit", by_hand)
    assert again.prior_precision == pytest.approx(whole.prior_precision, rel=1e-3)
    assert again.temperature == pytest.approx(whole.temperature, rel=1e-4)


def test_folds_part_the_rows(tmp_path: Path) -> None:
    """Every row is held out once, equal rows together, and labels in turn do not end in a fold each."""
    rows = [{"text": f"the film {i % 27}", "label": i % 3 % 2} for i in range(30)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    everything = [row.line for row in open_rows(path)]
    held_out = []
    for fold in range(3):
        out = list(FoldRows(path, fold, 3, 2, held_out=True).rows())
        kept = list(FoldRows(path, fold, 3, 2, held_out=False).rows())
        assert sorted(row.line for row in out + kept) == everything
        assert not {row.fields["text"] for row in out} & {row.fields["text"] for row in kept}
        assert {row.fields["label"] for row in kept} == {0, 1}
        assert 9 <= len(out) <= 12
        held_out += [row.line for row in out]
    assert sorted(held_out) == everything


def test_an_adapter_that_stopped_by_held_out_rows_is_not_cross_fitted(folders: Folders, tmp_path: Path) -> None:
    out = tmp_path / "early"
    assert _train(folders, out, "--validation", folders.test).exit_code == 0
    _refused(folders, out, ["--prior", "cross-fit"], "--validation")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prior", "cross-fit"], "training_config.json"),
        (["--prior", "both"], "cross-fit or a positive number"),
        (["--folds", "4"], "--folds has no use"),
        (["--score", "ece"], "--score has no use"),
        (["--no-temperature"], "--no-temperature has no use"),
        (["--prior", "2", "--prior-mean", "zero"], "--prior-mean has no use"),
        (["--prior-mean", "half"], "start or zero"),
        (["--prior", "cross-fit", "--score", "accuracy"], "nll, brier, ece"),
    ],
)
def test_what_does_not_go_together_is_refused(folders: Folders, adapter: Path, options: list[str], words: str) -> None:
    _refused(folders, adapter, options, words)


def test_more_folds_than_rows_are_refused(folders: Folders, trained: Path) -> None:
    _refused(folders, trained, ["--prior", "cross-fit", "--folds", "25"], "from 2 to 24")


def test_a_damaged_start_or_training_config_is_refused(folders: Folders, tmp_path: Path) -> None:
    set_seed(0)
    out = tmp_path / "spoilt"
    assert _train(folders, out).exit_code == 0
    (out / START).write_bytes(b"no tensors")
    _refused(folders, out, [], "--prior-mean zero")
    document = json.loads((out / "training_config.json").read_text(encoding="utf-8"))
    del document["settings"]["training"]["rank"], document["settings"]["training"]["target_modules"]
    (out / "training_config.json").write_text(json.dumps(document), encoding="utf-8")
    _refused(folders, out, ["--prior", "cross-fit"], "damaged")


def _refused(folders: Folders, adapter: Path, options: list[str], words: str) -> None:
    before = sorted(path.name for path in adapter.iterdir())
    result = run("fit", "--adapter", adapter, "--data", folders.train, *options)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("laplace-lora: ") == 1
    assert sorted(path.name for path in adapter.iterdir()) == before
