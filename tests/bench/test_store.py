"""Keys by content, and entries that are there whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from laplace_lora import LaplaceLoRAError
from laplace_lora.bench import keys
from laplace_lora.bench.keys import content_key, device_identity, model_identity, rows_digest
from laplace_lora.bench.store import ENTRY_NAME, Store


def test_a_key_is_of_the_content() -> None:
    assert content_key({"a": 1, "b": [2.0, None]}) == content_key({"b": [2.0, None], "a": 1})
    assert content_key({"a": 1}) != content_key({"a": 2})
    with pytest.raises(ValueError, match="JSON"):
        content_key({"a": float("nan")})


def test_a_folder_is_known_by_its_files(tmp_path: Path) -> None:
    names = ("one", "two", "three")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"x" * (1 + 3 * 2**20))
    (tmp_path / "three" / "weights").write_bytes(b"x" * 3 * 2**20 + b"y")
    one, two, three = (model_identity(str(tmp_path / name), None) for name in names)
    assert one == two != three
    hidden = tmp_path / "one" / ".cache" / "download"
    hidden.mkdir(parents=True)
    (hidden / "when").write_text("now")
    keys._folder_digest.cache_clear()
    assert model_identity(str(tmp_path / "one"), None) == one


def test_a_repository_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch moves on."""
    asked = []

    def cached_file(name: str, file: str, revision: str | None) -> str:
        asked.append((name, revision))
        return f"/hub/models--some--repository/snapshots/{'1' * 40}/{file}"

    monkeypatch.setattr(keys, "cached_file", cached_file)
    assert model_identity("some/repository", "abc") == {"hub": "some/repository", "commit": "1" * 40}
    assert asked == [("some/repository", "abc")]


def test_what_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(LaplaceLoRAError, match=r"--base .*nothing cannot be read \(.*\); give a folder"):
        model_identity(str(tmp_path / "nothing"), None)


def test_a_cpu_has_no_part_in_keys() -> None:
    assert device_identity("cpu") == {}
    assert device_identity("meta") == {"device": "meta"}


def test_rows_are_known_by_their_fields(tmp_path: Path) -> None:
    texts = {
        "a": '{"text": "x", "label": 0}\n',
        "b": '{"label": 0,  "text": "x"}\n',
        "c": '{"text": "x", "label": 1}\n',
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    a, b, c = (rows_digest(tmp_path / f"{name}.jsonl") for name in texts)
    assert a == b != c


def test_an_entry(tmp_path: Path) -> None:
    store, document = Store(tmp_path), {"x": 1}
    assert store.find("kind", document) is None
    about = {"seconds": 1.0}
    with store.made("kind", document, about) as staged:
        (staged / "file").write_text("text")
        about["more"] = 2.0
        assert store.find("kind", document) is None
    found = store.find("kind", document)
    assert found is not None
    assert (found / "file").read_text() == "text"
    assert store.entry(found) == {"made_from": {"x": 1}, "seconds": 1.0, "more": 2.0}
    assert store.find("other", document) is None
    assert [path.name for path in (tmp_path / "kind").iterdir()] == [found.name]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail() -> None:
        with store.made("kind", {}, {}) as staged:
            (staged / "file").write_text("text")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert store.find("kind", {}) is None
    assert not list((tmp_path / "kind").iterdir())


def test_a_second_process_with_the_same_result_is_no_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.made("kind", {}, {"who": 1}), store.made("kind", {}, {"who": 2}):
        pass
    found = store.find("kind", {})
    assert found is not None
    assert store.entry(found)["who"] == 2


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """The folder of a process that still runs is left alone."""
    script = (
        "import os, signal, sys; from pathlib import Path; from laplace_lora.bench.store import Store\n"
        "with Store(Path(sys.argv[1])).made('kind', {}, {}) as staged:\n"
        "    (staged / 'file').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = (tmp_path / "kind").iterdir()
    running = tmp_path / "kind" / f".partial-{os.getppid()}-x"
    running.mkdir()
    elsewhere = tmp_path / "kind" / f"{left.name[: left.name.index('-', 9)]}-another-x"
    elsewhere.mkdir()
    store = Store(tmp_path)
    assert store.find("kind", {}) is None
    assert not left.exists()
    assert running.exists()
    assert elsewhere.exists()  # the same number means another process on another machine


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaplaceLoRAError, match="not a folder"):
        Store(tmp_path / "file")
    store = Store(tmp_path / "cache")
    (tmp_path / "cache").write_text("")
    with pytest.raises(LaplaceLoRAError, match="give another --cache"), store.made("kind", {}, {}):
        pass


def test_an_entry_is_json(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="JSON"), store.made("kind", {}, {"x": float("inf")}):
        pass
    assert store.find("kind", {}) is None
    assert ENTRY_NAME == "entry.json"
