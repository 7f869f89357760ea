"""The README's quick start: every command as it stands there, at tiny size."""

import re
import shlex
from pathlib import Path

import pytest

from cli import folders

README = Path(__file__).resolve().parents[2] / "README.md"
MARK = "<!-- quick start: every command below is run by the tests -->"


def commands() -> list[list[str]]:
    """Return the words of every command in the block under the mark."""
    block = re.search(re.escape(MARK) + r"\s*```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    lines = [line for line in block.group(1).splitlines() if line.strip() and not line.startswith("#")]
    return [shlex.split(line) for line in lines]


def test_every_command_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate")
    made = folders.build(tmp_path / "made")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base-model").symlink_to(made.bert)
    for name, count in (("train", 12), ("validation", 6), ("test", 8), ("new", 3)):
        folders.write_jsonl(tmp_path / f"{name}.jsonl", folders.rows(count, 2, seed=count))
    found = commands()
    assert [words[1] for words in found] == ["train", "fit", "evaluate", "predict", "info"]
    for words in found:
        assert words[0] == "laplace-lora"
        result = folders.run(*words[1:])
        assert result.exit_code == 0, (words, result.stderr, result.exception)
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    assert len((tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert "fitted to 12 examples" in result.stdout
