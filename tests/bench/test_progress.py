"""The time that is left, by what jobs of a kind took so far."""

import pytest

from laplace_lora.bench import progress as module
from laplace_lora.bench.progress import Progress, duration


def test_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    progress = Progress(["train", "map", "train", "map", "map"], shown=False)
    assert progress.left() is None
    with progress.job("train", "first"):
        now += 100.0
    assert progress.left() == 100.0 + 3 * 100.0  # nothing is known of the other kind
    with progress.job("map", "second"):
        now += 10.0
    assert progress.left() == 100.0 + 2 * 10.0
    with progress.job("map", "third"):
        now += 20.0
    assert progress.left() == 100.0 + 15.0
    with progress.job("swag", "not foreseen"):
        now += 1.0
    assert progress.left() == 115.0
    progress.close()


def test_a_line_for_every_job() -> None:
    said: list[str] = []
    progress = Progress(["a", "b"], shown=False, say=said.append)
    for kind in ("a", "b", "c"):
        with progress.job(kind, f"job of {kind}"):
            pass
    assert said == [
        "job of a: job 1 of 2, ? left",
        "job of b: job 2 of 2, 0 s left",
        "job of c: job 3 of 3, 0 s left",
    ]


def test_a_job_that_fails_is_not_counted() -> None:
    progress = Progress(["a"], shown=False)
    with pytest.raises(KeyError), progress.job("a", ""):
        raise KeyError
    assert progress.left() is None


def test_durations() -> None:
    assert [duration(s) for s in (None, 0.4, 59.0, 61.0, 3600.0, 7500.0)] == [
        "?",
        "0 s",
        "59 s",
        "1 min",
        "1 h 00 min",
        "2 h 05 min",
    ]
