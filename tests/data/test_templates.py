"""The shapes of data files, and templates: what they write, what they refuse, and that they cannot run away."""

import time
from typing import Any

import pytest

from laplace_lora.data import Row, RowFormat, row_format
from laplace_lora.data.templates import close_template
from laplace_lora.errors import DataFileError


def _render(template: str, **fields: Any) -> str:
    return RowFormat(template).render(Row(3, fields), "f.jsonl")[0]


def _refusal(template: str, **fields: Any) -> str:
    with pytest.raises(DataFileError) as caught:
        _render(template, **fields)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"text": "a"}, ("a", None)),
        ({"premise": "a", "hypothesis": "b"}, ("a", "b")),
        ({"passage": "a", "question": "b"}, ("b", "a")),
        ({"question": "a", "choices": ["b", "c"]}, ("a\nA. b\nB. c", None)),
        ({"passage": "a", "question": "b", "text": "c"}, ("b", "a")),
        ({"text": "a", "idx": 3, "meta": {"x": 1}}, ("a", None)),
        ({"text": 1.5}, ("1.5", None)),
    ],
)
def test_shapes(fields: dict[str, Any], texts: tuple[str, str | None]) -> None:
    row = Row(1, {**fields, "label": 0})
    assert row_format(row, "f", pairs=True).render(row, "f") == texts
    # Without anything to put between two texts they become one.
    joined = "\n".join(filter(None, texts))
    assert row_format(row, "f", pairs=False).render(row, "f") == (joined, None)


def test_an_unknown_shape_names_its_fields() -> None:
    with pytest.raises(DataFileError, match=r"^f:4 has the fields sentence, label; name them passage") as caught:
        row_format(Row(4, {"sentence": "x", "label": 0}), "f", pairs=True)
    assert "--template" in str(caught.value)
    with pytest.raises(DataFileError, match="has the fields nothing"):
        row_format(Row(4, {}), "f", pairs=True)


def test_choices_that_are_one_text_are_refused() -> None:
    row = Row(2, {"question": "q", "choices": "a;b"})
    with pytest.raises(DataFileError, match="'choices' holds one text, not a list"):
        row_format(row, "f", pairs=True).render(row, "f")
    assert _render("{{ choices }}", choices="a;b") == "a;b"


def test_more_choices_than_letters_are_refused() -> None:
    row = Row(2, {"question": "q", "choices": ["x"] * 27})
    with pytest.raises(DataFileError, match="f:2: the template"):
        row_format(row, "f", pairs=True).render(row, "f")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ text|trim|upper }}!", "HI!"),
        ("{{ text.strip() }}", "hi"),
        ("{{ text|replace('i', 'o') }}", " ho "),
        ("{% if n == '3' %}three{% endif %}", "three"),
        ("{{ letters[1] }}", "B"),
        ("{% for x in xs %}{{ loop.index }}{{ x }}{% endfor %}\n", "1a2b\n"),
        ("{{ xs|join(', ') }} {{ xs[0] }}", "a, b a"),
    ],
)
def test_templates(template: str, text: str) -> None:
    assert _render(template, text=" hi ", n=3, xs=["a", "b"]) == text


@pytest.mark.parametrize(
    "template",
    ["{{ text", "{% for %}", "{{ text|nonsense }}", "{% if text %}", "{{" + "(" * 3000, "{{ " + "-" * 3000 + "1 }}"],
)
def test_malformed_templates(template: str) -> None:
    with pytest.raises(DataFileError, match="is malformed") as caught:
        RowFormat(template).fields()
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "template",
    [
        "{{ text.__class__ }}",
        "{{ text['__class__'].__mro__ }}",
        "{{ text.format.__globals__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ text.format(text) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__ }}",
        "{{ namespace() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
    ],
)
def test_escapes_are_refused(template: str) -> None:
    assert "mend it" in (message := _refusal(template, text="x")) or "malformed" in message or "lacks" in message


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}{{ i }}{% endfor %}",
        "{% for i in range(1000000000) %}{{ i }}{% endfor %}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ text * 1000000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ text|center(1000000000) }}",
        "{{ text.zfill(1000000000) }}",
        "{{ text|replace('x', 'xxxxxxxxxx')|replace('x', 'xxxxxxxxxx') }}",
        "{{ text|replace('', text) }}",
        "{% set a = text ~ text %}{{ a }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in xs recursive %}{{ loop(xs) }}{% endfor %}",
        "{% for a in xs %}{% for b in xs %}{% for c in xs %}{{ c }}{% endfor %}{% endfor %}{% endfor %}",
        "{{ text }}" * 3000,
    ],
)
def test_templates_cannot_run_away(template: str) -> None:
    start = time.perf_counter()
    _refusal(template, text="x" * 1000, xs=["x"] * 1000)
    assert time.perf_counter() - start < 5.0


def test_unknown_fields_are_named_with_those_there() -> None:
    assert _refusal("{{ nope }}", text="a", label=0).startswith("f.jsonl:3 lacks the field 'nope' (it has text, label)")


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (None, "'text' holds a NoneType, not text"),
        (True, "'text' holds a bool"),
        ({"a": 1}, "'text' holds a dict"),
        ([["a"]], "'text' holds a list"),
        (["a", None], "'text' holds a NoneType"),
        (float("nan"), "'text' holds nan, a missing value"),
        ("a\ud800", "half of a surrogate pair"),
        (["\udfff"], "half of a surrogate pair"),
        ("", "gives an empty text"),
        (" \n ", "gives an empty text"),
    ],
)
def test_values_that_are_no_text(value: Any, part: str) -> None:
    message = _refusal("{{ text }}", text=value)
    assert message.startswith("f.jsonl:3")
    assert part in message


def test_errors_of_a_row_name_it() -> None:
    assert _refusal("{{ text[0] + 1 }}", text="a").startswith("f.jsonl:3: the template")
    assert _refusal("{{ text.nope }}", text="a").startswith("f.jsonl:3: the template")


def test_an_empty_second_template_is_refused() -> None:
    with pytest.raises(DataFileError, match="empty text"):
        RowFormat("{{ text }}", "").render(Row(1, {"text": "a"}), "f")


def test_the_end_of_sequence_token_is_the_tokenizers() -> None:
    asked = RowFormat("{{ question }}{{eos_token}}", " {{ choice }}{{ eos_token }}")
    assert close_template(asked, r"</s>\1", "d") == RowFormat(r"{{ question }}</s>\1", r" {{ choice }}</s>\1")
    assert close_template(asked, "", "d") == RowFormat("{{ question }}", " {{ choice }}")
    plain = RowFormat("{{ question }}")
    assert close_template(plain, None, "d") is plain
    for token in (None, "{{"):
        with pytest.raises(DataFileError, match=r"prompt of d ends in an end-of-sequence token, .*give --template\.$"):
            close_template(asked, token, "d")
