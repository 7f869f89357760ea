"""``acquire``: rows of a pool in the order of what their labels would tell, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cli.folders import Folders, copy, error_line, refused, rows, run, write_csv, write_jsonl
from laplace_lora import InputFormat, LaplaceConfig, LaplaceLoRA, load_adapter
from laplace_lora.acquisition import batch_bald


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _acquire(adapter: Path, data: Path, out: Path, *options: object) -> Any:
    result = run("acquire", "--adapter", adapter, "--data", data, "--out", out, *options)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    drawn = [{"text": row["text"], "id": f"r{i}"} for i, row in enumerate(rows(40, 2, seed=5))]
    return write_jsonl(tmp_path / "pool.jsonl", drawn)


def _in_python(adapter: Path, texts: list[str]) -> tuple[LaplaceLoRA, dict[str, Any]]:
    model, tokenizer, _ = load_adapter(adapter)
    return LaplaceLoRA.from_pretrained(model, adapter), dict(tokenizer(texts, return_tensors="pt", padding=True))


@pytest.mark.parametrize(("method", "field"), [("bald", "mutual_information"), ("entropy", "total_entropy")])
def test_single_scores_are_those_of_predict(method: str, field: str, fitted: Path, tmp_path: Path, pool: Path) -> None:
    _acquire(fitted, pool, tmp_path / "a.jsonl", "--method", method, "--quiet")
    run("predict", "--adapter", fitted, "--data", pool, "--out", tmp_path / "p.jsonl")
    predicted, found = _lines(tmp_path / "p.jsonl"), _lines(tmp_path / "a.jsonl")
    assert [one["rank"] for one in found] == list(range(1, 41))
    assert sorted(one["row"] for one in found) == list(range(40))
    scores = [one["score"] for one in found]
    assert scores == sorted(scores, reverse=True)
    for one in found:
        row = predicted[one["row"]]
        assert one["score"] == pytest.approx(row[field], rel=1e-6)
        assert (one["label"], one["confidence"]) == (row["label"], pytest.approx(row["confidence"]))
        assert (one["id"], one["line"]) == (f"r{one['row']}", one["row"] + 1)


def test_a_batch_is_the_library_s(fitted: Path, tmp_path: Path, pool: Path) -> None:
    result = _acquire(fitted, pool, tmp_path / "a.jsonl", "--top", 6, "--candidates", 20)
    assert "6 of 20 candidates" in result.stderr
    found = _lines(tmp_path / "a.jsonl")
    la, batch = _in_python(fitted, [row["text"] for row in _lines(pool)])
    scores = la.predict(batch).mutual_information
    kept = sorted(scores.argsort(descending=True, stable=True)[:20].tolist())
    chosen = batch_bald(la.predict_joint([{key: value[kept] for key, value in batch.items()}]), 6)
    assert [one["row"] for one in found] == [kept[i] for i in chosen.index]
    assert [one["score"] for one in found] == pytest.approx(chosen.gains, rel=1e-4, abs=1e-6)


def test_a_batch_does_not_hold_the_same_text_twice_where_bald_does(fitted: Path, tmp_path: Path) -> None:
    drawn = [{"text": row["text"]} for row in rows(12, 2, seed=5) for _ in range(4)]
    pool = write_jsonl(tmp_path / "pool.jsonl", drawn)
    distinct = {}
    for method in ("bald", "batch_bald"):
        _acquire(fitted, pool, tmp_path / "a.jsonl", "--method", method, "--top", 4)
        distinct[method] = len({drawn[one["row"]]["text"] for one in _lines(tmp_path / "a.jsonl")})
    assert distinct["bald"] == 1
    assert distinct["batch_bald"] > 1


def test_labels_are_not_read_and_csv_works(fitted: Path, tmp_path: Path) -> None:
    drawn = [{**row, "label": "nonsense"} for row in rows(9, 2, seed=8)]
    _acquire(fitted, write_csv(tmp_path / "pool.csv", drawn), tmp_path / "a.jsonl", "--batch-size", 4)
    assert sorted(one["line"] for one in _lines(tmp_path / "a.jsonl")) == list(range(2, 11))


def test_standard_input_and_output(fitted: Path, pool: Path) -> None:
    options = ["--adapter", fitted, "--data", "-", "--out", "-", "--top", 3, "--method", "bald"]
    result = run("acquire", *options, stdin=pool.read_bytes())
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["rank"] for line in result.stdout.splitlines()] == [1, 2, 3]


def test_rows_of_the_training_are_left_out(fitted: Path, folders: Folders, tmp_path: Path) -> None:
    drawn = [*rows(24, 2)[:5], *rows(10, 2, seed=5)]
    pool = write_jsonl(tmp_path / "pool.jsonl", drawn)
    for method in ("bald", "batch_bald"):
        result = _acquire(fitted, pool, tmp_path / "a.jsonl", "--method", method)
        assert "5 of 15 rows" in result.stderr
        assert "are left out" in result.stderr
        assert sorted(one["row"] for one in _lines(tmp_path / "a.jsonl")) == list(range(5, 15))


def test_three_classes_and_kept_answers(folders: Folders, tmp_path: Path) -> None:
    """The default prior keeps answers, which evens variances: the first gain is still BALD's."""
    adapter = copy(folders.three, tmp_path / "three")
    train = write_jsonl(tmp_path / "train3.jsonl", rows(24, 3))
    fit = run("fit", "--adapter", adapter, "--data", train, "--labels", "red,green,blue", "--quiet")
    assert fit.exit_code == 0, fit.stderr
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"text": row["text"]} for row in rows(20, 3, seed=9)])
    _acquire(adapter, pool, tmp_path / "a.jsonl", "--method", "bald")
    best = _lines(tmp_path / "a.jsonl")[0]
    assert best["label"] in ("red", "green", "blue")
    _acquire(adapter, pool, tmp_path / "b.jsonl", "--top", 5)
    first = _lines(tmp_path / "b.jsonl")[0]
    assert first["score"] == pytest.approx(best["score"], abs=2e-3)


def test_help_says_defaults_and_units() -> None:
    text = " ".join(run("acquire", "--help").stdout.split())
    for part in ("in nats", "[default: batch_bald]", "25 with batch_bald", "[default: 300]", "standard input", "ROWS"):
        assert part in text, part


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "guess"], "choose one of bald, batch_bald, entropy"),
        (["--top", 301], "--top 301 is more than the 300 candidates"),
        (["--method", "entropy", "--candidates", 5], "--candidates belongs to batches"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[object], said: str, fitted: Path, tmp_path: Path, pool: Path
) -> None:
    line = refused(tmp_path, "acquire", "--adapter", fitted, "--data", pool, "--out", tmp_path / "a.jsonl", *options)
    assert said in line


def test_bad_input_is_one_line_and_writes_nothing(fitted: Path, folders: Folders, tmp_path: Path, pool: Path) -> None:
    out = tmp_path / "a.jsonl"
    common = ["acquire", "--adapter", fitted, "--out", out]
    assert "all 24 rows" in refused(tmp_path, *common, "--data", folders.train)
    assert "check the path" in refused(tmp_path, *common, "--data", tmp_path / "missing.jsonl")
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"text": "good"}, {"words": "bad"}])
    assert "bad.jsonl:2" in refused(tmp_path, *common, "--data", bad)
    assert "is the data that is read" in refused(
        tmp_path, "acquire", "--adapter", fitted, "--data", pool, "--out", pool
    )
    unfitted = refused(tmp_path, "acquire", "--adapter", folders.two, "--data", pool, "--out", out)
    assert "fit" in unfitted


def test_more_candidates_than_memory_are_refused(folders: Folders, adapter: Path, tmp_path: Path, pool: Path) -> None:
    model, tokenizer, _ = load_adapter(adapter)
    config = LaplaceConfig(structure="diag", memory_limit_bytes=1000, progress=False)
    texts = [row["text"] for row in _lines(folders.train)]
    form = InputFormat(template="{{ text }}")
    la = LaplaceLoRA(model, config, input_format=form).fit([dict(tokenizer(texts, return_tensors="pt", padding=True))])
    la.save_pretrained(adapter)
    result = run("acquire", "--adapter", adapter, "--data", pool, "--out", tmp_path / "a.jsonl")
    assert "--candidates" in error_line(result)
    assert not (tmp_path / "a.jsonl").exists()


def test_more_information_than_draws_resolve_is_said() -> None:
    from laplace_lora.acquisition import Batch
    from laplace_lora.commands.acquire import _say_batch

    said: list[str] = []

    class Console:
        def say(self, *_: object, **__: object) -> None: ...

        def warn(self, message: str) -> None:
            said.append(message)

    _say_batch(Batch([0], [math.log(4096) - 2.5], 4096), 1, Console())  # type: ignore[arg-type]
    assert not said
    _say_batch(Batch([0], [math.log(4096) - 1.5], 4096), 1, Console())  # type: ignore[arg-type]
    assert "smaller --top" in said[0]
