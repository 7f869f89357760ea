"""A tiny adapter with its posterior, evaluated on several data sets, for tests of what an evaluation writes."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.folders import build, copy, rows, run, write_jsonl
from laplace_lora import commands
from laplace_lora.data import Row, RowSource


class Split(RowSource):
    """Rows as a known task has them."""

    def __init__(
        self, items: list[dict[str, Any]], task: str = "made_up", split: str = "test", own: bool = True
    ) -> None:
        self.items, self.task, self.split, self.own = items, task, split, own

    def __str__(self) -> str:
        return f"{self.task}:{self.split}"

    def rows(self) -> Iterator[Row]:
        for line, fields in enumerate(self.items, start=1):
            yield Row(line, fields)

    def provenance(self) -> dict[str, Any]:
        return {"task": self.task, "split": self.split, "own_split": self.own, "source": "memory"}

    @property
    def shown(self) -> str:
        return f"{self.task}, {self.split}, from memory, n = {len(self.items)}"


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What one evaluation wrote and said.

    Attributes:
        out: The folder.
        metrics: metrics.json.
        text: For a terminal.
        messages: Everything said on standard error.
    """

    out: Path
    metrics: dict[str, Any]
    text: str
    messages: str


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds ``fitted``: an adapter of two classes with a posterior."""
    root = tmp_path_factory.mktemp("evaluation")
    made = build(root)
    copy(made.two, root / "fitted")
    result = run("fit", "--adapter", root / "fitted", "--data", made.train, "--quiet")
    assert result.exit_code == 0, result.stderr
    return root


@pytest.fixture
def evaluate(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that evaluates the adapter on 12 rows, and on whatever else it is given."""

    def evaluated(*ood: Any, data: Any = None, validation: Any = None, adapter: Path = folder / "fitted") -> Evaluated:
        data = data or write_jsonl(tmp_path / "data.jsonl", rows(40, 2, seed=1))
        config = commands.EvaluateConfig(
            commands.AdapterSource(str(adapter)), data, tmp_path / "out", validation=validation, ood=ood
        )
        capsys.readouterr()
        found = commands.evaluate(config, commands.Console(json_log=True))
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        return Evaluated(tmp_path / "out", metrics, found.text, capsys.readouterr().err)

    return evaluated
