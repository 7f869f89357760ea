"""Hypothesis strategies that spoil files: bytes, lines, and single entries of JSON documents."""

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

#: JSON values that stand where others belong.
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    2**20,
    10**9,
    2**63,
    10**400,
    0.5,
    -0.5,
    1e-300,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "LORA",
    "\ud800",
    "\x00",
    "\n",
    "{{",
    "../..",
    "x" * 5000,
    [],
    {},
    [None],
    [[1, 2]],
    ["x", "x"],
    {"x": 1},
    {"x": {"x": []}},
)


def spoilt_bytes(whole: bytes) -> st.SearchStrategy[bytes]:
    """Cut, overwrite, remove, repeat or insert a stretch."""

    def spoil(kind: str, where: float, length: int, new: bytes) -> bytes:
        start = int(where * len(whole))
        head, middle, tail = whole[:start], whole[start : start + length], whole[start + length :]
        return {
            "cut": head,
            "overwrite": head + new + tail,
            "remove": head + tail,
            "repeat": head + 2 * middle + tail,
            "insert": head + new + middle + tail,
        }[kind]

    kinds = st.sampled_from(["cut", "overwrite", "remove", "repeat", "insert"])
    snippets = [
        b'"',
        b"}",
        b"\n",
        b",",
        b"\x00",
        b"\xff\xfe",
        b"[",
        b"\xef\xbb\xbf",
        b"1e999",
        b"{}",
        b"\\ud800",
        b"\r",
    ]
    new = st.one_of(st.sampled_from(snippets), st.binary(min_size=1, max_size=8))
    return st.builds(spoil, kinds, st.floats(0, 1, exclude_max=True), st.integers(1, 40), new)


def spoilt_lines(lines: Sequence[str]) -> st.SearchStrategy[str]:
    """Put an odd line in place of one, or between two."""
    odd = [json.dumps(value) for value in ODD] + [
        "",
        "   ",
        "{",
        "[" * 100_000,
        '{"text": "the film", "label": 99}',
        '{"text": "the film", "label": "good"}',
        '{"text": "the film"}',
        '{"label": 0}',
        '{"text": "", "label": 0}',
        '{"text": "\\ud800", "label": 0}',
        '{"text": ["the", "film"], "label": 0}',
        '{"text": {"a": 1}, "label": 0}',
        '{"text": null, "label": 0}',
        '{"text": "the film", "label": true}',
        '{"text": "the film", "label": 1.0}',
        '{"text": "' + "the " * 3000 + '", "label": 0}',
        '{"text": "a", "label": ' + "9" * 5000 + "}",
    ]

    def spoil(index: int, line: str, replace: bool) -> str:
        changed = list(lines)
        changed[index : index + replace] = [line]
        return "\n".join(changed) + "\n"

    return st.builds(spoil, st.integers(0, len(lines) - 1), st.sampled_from(odd), st.booleans())


def spoilt_json(document: Any) -> st.SearchStrategy[str]:
    """Put an odd value in one place of a document, remove an entry, or add one."""
    places = list(_places(document, ()))

    def spoil(place: tuple[Any, ...], value: Any, action: str) -> str:
        changed = {"document": copy.deepcopy(document)}
        parent: Any = changed
        for step in ("document", *place[:-1]):
            parent = parent[step]
        if not place:
            return json.dumps(value)
        if action == "remove":
            del parent[place[-1]]
        elif action == "add" and isinstance(parent, dict):
            parent["unheard of"] = value
        else:
            parent[place[-1]] = value
        return json.dumps(changed["document"])

    actions = st.sampled_from(["replace", "replace", "replace", "remove", "add"])
    deep = st.just("[" * 50_000)
    return st.one_of(st.builds(spoil, st.sampled_from(places), st.sampled_from(ODD), actions), deep)


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value[:3]):
            yield from _places(item, (*path, index))
