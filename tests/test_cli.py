"""The command line: help with defaults, one line per foreseen error, and the demo's own checks."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from laplace_lora import cli
from laplace_lora.demo import DemoConfig, SeedResult, encoder, seeds_table, write_results
from laplace_lora.errors import LaplaceLoRAError, MissingExtraError
from laplace_lora.evaluation import compare


def test_help_names_options_with_defaults():
    result = CliRunner().invoke(cli.app, ["demo", "--help"], env={"COLUMNS": "120", "TERM": "dumb"})
    assert result.exit_code == 0
    for part in ("--out", "laplace-lora-demo", "--seeds", "[default: 1;", "--small", "--quiet"):
        assert part in result.output


@pytest.mark.parametrize("arguments", [["demo", "--seeds", "6"], ["demo", "--nonsense"], ["nonsense"]])
def test_wrong_arguments_are_refused(arguments):
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2


def test_a_foreseen_error_is_one_line(monkeypatch, capsys):
    def fail(**_):
        raise LaplaceLoRAError("something foreseen; do this instead.")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "laplace-lora: something foreseen; do this instead.\n"


def test_a_missing_encoder_names_the_extra(monkeypatch):
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match=r"laplace-lora\[demo\]"):
        encoder.encoder_folder()


def test_other_weights_are_refused(monkeypatch):
    if importlib.util.find_spec(encoder.PACKAGE) is None:
        pytest.skip("the demo extra is not installed")
    assert (encoder.encoder_folder() / "config.json").is_file()
    monkeypatch.setattr(encoder, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(LaplaceLoRAError, match="SHA-256"):
        encoder.encoder_folder()


def _result(seed: int, train_accuracy: float, ece_is_low: bool) -> SeedResult:
    generator = np.random.default_rng(0)
    truth = generator.uniform(0.6, 0.9, size=400)
    truth = np.stack([1 - truth, truth], axis=1)
    labels = (generator.random(400) < truth[:, 1]).astype(int)
    sure = np.where(truth > 0.5, 0.99, 0.01)
    return SeedResult(
        seed, train_accuracy, compare({"map": sure, "laplace": truth if ece_is_low else sure}, labels, truth), 1.0, {}
    )


def test_a_seed_that_misses_a_bar_is_shown(tmp_path: Path):
    results = [_result(0, 1.0, True), _result(1, 0.5, True), _result(2, 1.0, False)]
    table = seeds_table(results).splitlines()
    assert table[2].endswith("all met")
    assert table[3].endswith("missed: 1")
    assert table[4].endswith("missed: 2, 3")
    write_results(tmp_path / "results.json", DemoConfig(), results, "laplace-lora demo --seeds 3")
    document = json.loads((tmp_path / "results.json").read_text())
    assert [seed["bars_met"] for seed in document["seeds"]] == [
        [True, True, True, True],
        [False, True, True, True],
        [True, False, False, True],
    ]
    assert document["config"]["train"] == DemoConfig().train
    assert set(dataclasses.asdict(DemoConfig())) == set(document["config"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["fit", "--adapter", "x"], "--data"), (["fit", "--nonsense"], "--nonsense"), (["nonsense"], "nonsense")],
)
def test_wrong_usage_is_one_line(arguments, part, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["laplace-lora", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("laplace-lora: ")
    assert part in line
    assert line.endswith("--help.\n")
