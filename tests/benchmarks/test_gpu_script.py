"""The GPU benchmark runs from end to end on any machine, writes its JSON as it goes and prints its table last."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu" / "single.py"
SMALL = ["--tiny", "--device", "cpu", "--classes", "2", "--batches", "4", "--repeats", "3", "--no-peers"]


def _run(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *SMALL, "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_measurement_is_made(dtype: str, tmp_path: Path) -> None:
    done = _run(tmp_path / "gpu.json", "--budget-seconds", "240", "--dtype", dtype)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads((tmp_path / "gpu.json").read_text())
    found = {(row["of"], row["what"]) for row in document["results"]["measurements"]}
    assert {("reference", what) for what in ("forward", "passes", "training_step")} <= found
    for structure in ("kron", "diag", "last_layer"):
        assert {(structure, what) for what in ("fit exact", "fit rademacher", "fit mc", "predict", "finalise")} <= found
    assert {("exact", what) for what in ("fit exact", "fit rademacher", "predict", "finalise")} <= found
    # One sampled label per text is refused by the library where the posterior is to be exact; nothing else is.
    assert all("exact" in entry["name"] and "mc" in entry["name"] for entry in document["results"]["skipped"])
    assert all(row["seconds"] > 0 for row in document["results"]["measurements"])
    assert document["machine"]["device"] == "cpu"
    assert document["results"]["settings"]["factor_rank"] == 64
    assert done.stdout.rstrip().splitlines()[-1].startswith("|")


def test_what_does_not_fit_into_the_budget_is_listed_by_name(tmp_path: Path) -> None:
    done = _run(tmp_path / "gpu.json", "--budget-seconds", "0")
    assert done.returncode == 0, done.stderr[-2000:]
    skipped = json.loads((tmp_path / "gpu.json").read_text())["results"]["skipped"]
    assert {entry["why"] for entry in skipped} == {"no time left"}
    assert any("kron" in entry["name"] for entry in skipped)


def test_a_size_that_the_device_cannot_hold_is_refused_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--size", "7b", "--device", "cpu", "--batches", "4096", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "GiB" in done.stderr.splitlines()[-1]
    assert not out.exists()


def test_a_profile_says_where_the_time_goes(tmp_path: Path) -> None:
    done = _run(tmp_path / "gpu.json", "--budget-seconds", "120", "--structures", "kron", "--profile")
    assert done.returncode == 0, done.stderr[-2000:]
    fit, predict = done.stdout.split("\nfit, kron")[1].split("\npredict, kron")
    assert "  fold, Jacobians included: " in fit
    assert all(f"  {label}: " in predict for label in ("Jacobians", "covariance", "integral"))
