"""How a row's fields become text: the shapes that data files come in, and templates."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from laplace_lora.data.files import Row
from laplace_lora.errors import DataFileError

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """The text of an input, and its second half where the tokenizer takes a pair.

    Attributes:
        template: Jinja template of the text over the row's fields.
        pair_template: The same for the second text of a pair, or None.
    """

    template: str
    pair_template: str | None = None

    def fields(self) -> frozenset[str]:
        """Return the names of the fields that the templates use.

        Returns:
            Names.

        Raises:
            DataFileError: A template is malformed.
        """
        names: set[str] = set()
        for source in filter(None, (self.template, self.pair_template)):
            names |= meta.find_undeclared_variables(_environment().parse(_compiled(source)[0]))
        return frozenset(names)

    def render(self, row: Row, name: str) -> tuple[str, str | None]:
        """Fill the templates.

        Args:
            row: The row.
            name: What messages call its file.

        Returns:
            The text, and the second text or None.

        Raises:
            DataFileError: A field is missing or no text, or the text comes out empty.
        """
        values = {key: _value(row, key, name) for key in sorted(self.fields())}
        texts = [_fill(source, values, row, name) for source in filter(None, (self.template, self.pair_template))]
        return texts[0], texts[1] if len(texts) > 1 else None


#: Fields of the shapes that data files come in, and how each is written out. The first that fits counts.
SHAPES: tuple[tuple[tuple[str, ...], RowFormat], ...] = (
    (("passage", "question"), RowFormat("{{ question }}", "{{ passage }}")),
    (("premise", "hypothesis"), RowFormat("{{ premise }}", "{{ hypothesis }}")),
    (
        ("question", "choices"),
        RowFormat("{{ question }}{% for choice in choices %}\n{{ letters[loop.index0] }}. {{ choice }}{% endfor %}"),
    ),
    (("text",), RowFormat("{{ text }}")),
)


def row_format(row: Row, name: str, pairs: bool) -> RowFormat:
    """Recognise the shape of a file by its first row.

    Args:
        row: The first row.
        name: What messages call the file.
        pairs: Whether the tokenizer puts something between two texts; else they are joined by a line break.

    Returns:
        How its rows are written out.

    Raises:
        DataFileError: The shape is none of those known.
    """
    for fields, form in SHAPES:
        if all(field in row.fields for field in fields):
            if form.pair_template is None or pairs:
                return form
            return RowFormat(f"{form.template}\n{form.pair_template}")
    known = " or ".join("+".join(fields) for fields, _ in SHAPES)
    found = ", ".join(map(str, row.fields)) or "nothing"
    raise DataFileError(f"{name}:{row.line} has the fields {found}; name them {known}, or give --template.")


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    # Templates come with downloaded posteriors: nothing but text may come of them.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals = {"letters": _LETTERS}
    return environment


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[str, Template]:
    try:
        return source, _environment().from_string(source)
    except (TemplateError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataFileError(f"the template {source!r} is malformed ({reason}); see the Jinja documentation.") from None


def _fill(source: str, values: Mapping[str, Any], row: Row, name: str) -> str:
    try:
        text = _compiled(source)[1].render(values)
    except DataFileError:
        raise
    except Exception as error:  # whatever a template's own expressions run into
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataFileError(f"{name}:{row.line}: the template {source!r} fails ({reason}); mend it.") from None
    if not text.strip():
        raise DataFileError(f"{name}:{row.line} gives an empty text; remove the row or fill it in.")
    return text


def _value(row: Row, key: str, name: str) -> str | list[str]:
    if key == "letters" and key not in row.fields:
        return _LETTERS
    if key not in row.fields:
        found = ", ".join(map(str, row.fields)) or "none"
        raise DataFileError(f"{name}:{row.line} lacks the field {key!r} (it has {found}); add it, or give --template.")
    value = row.fields[key]
    items = value if isinstance(value, list) else [value]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise DataFileError(
                f"{name}:{row.line}: {key!r} holds a {type(item).__name__}, not text; write it as a string."
            )
        try:
            str(item).encode()
        except UnicodeEncodeError:
            raise DataFileError(
                f"{name}:{row.line}: {key!r} holds half of a surrogate pair, which is no text; mend its escapes."
            ) from None
    return [str(item) for item in value] if isinstance(value, list) else str(value)
