"""Labels become class indices by a list that somebody gave, or are refused; they are never sorted."""

from typing import Any

import pytest

from laplace_lora.data import LabelReader, Row
from laplace_lora.errors import DataFileError, LaplaceLoRAError


def _read(reader: LabelReader, label: Any) -> int | None:
    return reader.read(Row(7, {"label": label}), "f.jsonl")


def _refusal(reader: LabelReader, label: Any) -> str:
    with pytest.raises(DataFileError) as caught:
        _read(reader, label)
    message = str(caught.value)
    assert message.startswith("f.jsonl:7: the label ")
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("label", "index"), [(0, 0), (2, 2), ("1", 1), (" 2 ", 2), ("1.0", 1), ("", None), (None, None)]
)
def test_indices(label: Any, index: int | None) -> None:
    assert _read(LabelReader(3), label) == index


def test_the_field_may_be_called_labels_or_be_missing() -> None:
    assert LabelReader(3).read(Row(1, {"labels": 2}), "f") == 2
    assert LabelReader(3).read(Row(1, {"text": "x"}), "f") is None


@pytest.mark.parametrize("label", [3, -1, 10**400, "3"])
def test_an_index_beyond_the_classes(label: Any) -> None:
    assert "is not an index from 0 to 2" in _refusal(LabelReader(3), label)


@pytest.mark.parametrize("label", [True, 1.5, float("nan"), [0], {"a": 1}])
def test_what_is_no_label(label: Any) -> None:
    assert f"is a {type(label).__name__}" in _refusal(LabelReader(3), label)


def test_names_are_read_in_the_order_given() -> None:
    reader = LabelReader(3, ("c", "a", "b"))
    assert [_read(reader, name) for name in ("a", "b", "c")] == [1, 2, 0]
    assert _read(reader, 1) == _read(reader, "1") == 1
    assert "is none of c, a, b" in _refusal(reader, "d")
    assert "is none of c, a, b" in _refusal(reader, "A")


@pytest.mark.parametrize("label", ["good", "½", "1.5", "1" * 12])
def test_names_without_a_list_are_refused(label: str) -> None:
    message = _refusal(LabelReader(2), label)
    assert "order of the classes is not known" in message
    assert "--labels" in message


def test_a_long_label_is_cut() -> None:
    assert len(_refusal(LabelReader(2), "x" * 10_000)) < 300
    assert len(_refusal(LabelReader(2), ["x" * 10_000])) < 300


def test_names_that_are_numbers_are_names() -> None:
    stars = LabelReader(3, ("1", "2", "3"))
    assert [_read(stars, name) for name in ("1", "2", "3")] == [0, 1, 2]
    # A JSON 1 may be meant either way: as the first star or the second class.
    assert "may be an index or one of the names 1, 2, 3" in _refusal(stars, 1)
    assert "is none of 1, 2, 3" in _refusal(stars, "0")
    assert _read(LabelReader(2, ("0", "1")), 1) == 1


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (("a",), "1 label names (a) for 2 classes"),
        (("a", "b", "c"), "3 label names (a, b, c) for 2 classes"),
        (("a", "a"), "repeat or are empty"),
        (("a", ""), "repeat or are empty"),
        (("a", "\ud800"), "no UTF-8 text"),
    ],
)
def test_lists_that_do_not_fit(names: tuple[str, ...], part: str) -> None:
    with pytest.raises(LaplaceLoRAError) as caught:
        LabelReader(2, names)
    assert part in str(caught.value)
    assert str(caught.value).endswith(".")


def test_shown_names() -> None:
    assert LabelReader(2).shown_names() == ("0", "1")
    assert LabelReader(2, ("a", "b")).shown_names() == ("a", "b")
    with pytest.raises(LaplaceLoRAError, match=r"0, 1, 2, 3, 4, 5, 6, 7, ... \(20 in all\)"):
        LabelReader(2, tuple(map(str, range(20))))


@pytest.mark.parametrize("label", [2.0, "2.0", " 2 ", "2"])
def test_integers_as_data_frames_write_them(label: Any) -> None:
    assert _read(LabelReader(3), label) == 2
