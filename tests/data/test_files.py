"""Rows of JSONL and CSV files: what is read, what is refused and with which line, and that nothing is hoarded."""

import json
from pathlib import Path

import pytest

from laplace_lora.data import Row, open_rows
from laplace_lora.errors import DataFileError


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _rows(path: Path) -> list[Row]:
    return list(open_rows(path))


def _refusal(path: Path) -> str:
    with pytest.raises(DataFileError) as caught:
        _rows(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_jsonl(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", '{"text": "é", "label": 1}\n\n   \n{"x": [1, {"y": null}]}')
    assert _rows(path) == [Row(1, {"text": "é", "label": 1}), Row(4, {"x": [1, {"y": None}]})]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_a_byte_order_mark_is_skipped(suffix: str, tmp_path: Path) -> None:
    content = "\ufefftext,label\nhi,1\n" if suffix == ".csv" else '\ufeff{"text": "hi", "label": "1"}\n'
    assert _rows(_write(tmp_path, f"a{suffix}", content)) == [
        Row(2 if suffix == ".csv" else 1, {"text": "hi", "label": "1"})
    ]


@pytest.mark.parametrize(
    ("name", "content", "is_json"),
    [
        ("a.JSONL", '{"text": "x"}', True),
        ("a.ndjson", '{"text": "x"}', True),
        ("a.data", '  {"text": "x"}', True),
        ("a", "text\nx", False),
        ("a.CSV", "text\nx", False),
    ],
)
def test_the_kind_is_told_by_suffix_or_first_character(name: str, content: str, is_json: bool, tmp_path: Path) -> None:
    assert _rows(_write(tmp_path, name, content)) == [Row(1 if is_json else 2, {"text": "x"})]


@pytest.mark.parametrize("content", ["", "\n\n", "text,label\n", "text,label"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_nothing_is_no_row(content: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".jsonl" and "text" in content:
        content = " \n"
    assert _rows(_write(tmp_path, f"a{suffix}", content)) == []


def test_csv(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv", 'text,label\r\n"a, ""b""",0\r\n\r\n"two\nlines",1\r\n,2\r\n')
    assert _rows(path) == [
        Row(2, {"text": 'a, "b"', "label": "0"}),
        Row(5, {"text": "two\nlines", "label": "1"}),
        Row(6, {"text": "", "label": "2"}),
    ]


def test_a_cell_of_a_megabyte(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv", "text,label\n" + "x" * 2**20 + ",0\n")
    assert len(_rows(path)[0].fields["text"]) == 2**20


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{"text": "a"}\n{"text": \n', ":2 is not a JSON object (Expecting value)"),
        (b'{"text": "a"}\n{"text": "b"} {"text": "c"}\n', ":2 is not a JSON object (Extra data)"),
        (b'\n{"text": "a"}\n[1, 2]\n', ":3 is a JSON list, not an object"),
        (b'"text"\n', ":1 is a JSON str, not an object"),
        (b"null\n", ":1 is a JSON NoneType"),
        (b'{"text": "a"}\n\xff\xfe\n', ":2 is not UTF-8"),
        ('{"text": "é"}\n'.encode("utf-16"), ":1 is not UTF-8"),
        (b"[" * 200_000 + b"\n", ":1 is not a JSON object (RecursionError)"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", ":1 is not a JSON object"),
        (b'{"text": "a\x00"}\n', ":1 is not a JSON object (Invalid control character"),
    ],
)
def test_bad_json_is_named_by_line(content: bytes, part: str, tmp_path: Path) -> None:
    assert _refusal(_write(tmp_path, "a.jsonl", content)).startswith(part)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"text,label\na,0\nb\n", ":3 has not the 2 cells of the header"),
        (b"text,label\na,0,0\n", ":2 has not the 2 cells of the header"),
        (b"text,text\na,b\n", ":1 has unnamed or repeated columns"),
        (b"text,,label\na,b,c\n", ":1 has unnamed or repeated columns"),
        (b'text,label\n"a"b,0\n', ":2 is not CSV"),
        (b'text,label\n"a,0\n', ":2 is not CSV (unexpected end of data)"),
        (b'text,label\na,0\n"b,0\nc,1\nd,1\n', ":3 to 5 is not CSV (unexpected end of data)"),
        (b"text,label\n\xff,0\n", " or soon after is not UTF-8"),
        (b'"text\n', ":1 is not CSV"),
    ],
)
def test_bad_csv_is_named_by_line(content: bytes, part: str, tmp_path: Path) -> None:
    assert part in _refusal(_write(tmp_path, "a.csv", content))


def test_unreadable_files(tmp_path: Path) -> None:
    assert "No such file" in _refusal(tmp_path / "none.jsonl")
    assert "Is a directory" in _refusal(tmp_path)
    assert "File name too long" in _refusal(tmp_path / ("x" * 5000))
    with pytest.raises(DataFileError, match="no regular file"):
        _rows(Path("/dev/null"))


def test_a_name_stands_in_for_the_path(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"^standard input:1 is not a JSON object"):
        list(open_rows(_write(tmp_path, "a.jsonl", "{"), "standard input"))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_rows_are_read_as_they_are_wanted(suffix: str, tmp_path: Path) -> None:
    good = ["text"] if suffix == ".csv" else []
    good += ["x" if suffix == ".csv" else json.dumps({"text": "x"})] * 20_000
    path = _write(tmp_path, f"a{suffix}", "\n".join([*good, '"', ""]))
    rows = open_rows(path)
    # The bad line at the end is not met before its time.
    assert next(rows).fields == next(rows).fields == {"text": "x"}
    with pytest.raises(DataFileError):
        list(rows)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators_and_blanks_in_the_header(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_bytes(f'text{mark} label\r\n"so, so"{mark}1\r\n'.encode("utf-8-sig"))
    assert [row.fields for row in open_rows(path)] == [{"text": "so, so", "label": "1"}]
