"""How a row's fields become text: the shapes that data files come in, and templates."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Jinja comes with torch, which cannot be installed without it.
from jinja2 import StrictUndefined, Template, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from laplace_lora.data.files import Row, is_text
from laplace_lora.errors import DataFileError, first_line

#: What choices are called, in their order.
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Templates come with downloaded posteriors: nothing but text may come of them, and soon. What could grow without
# bound is left out: powers and repetitions, widths, text put together again and again, functions, other files.
_NO_NODES: tuple[type[nodes.Node], ...] = (
    nodes.Pow,
    nodes.Mul,
    nodes.Mod,
    nodes.Macro,
    nodes.CallBlock,
    nodes.FilterBlock,
    nodes.Assign,
    nodes.AssignBlock,
    nodes.Extends,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.Block,
)
# fmt: off
_FILTERS = (
    "capitalize", "d", "default", "e", "escape", "first", "float", "int", "join", "last", "length", "list", "lower",
    "map", "reject", "rejectattr", "replace", "reverse", "round", "select", "selectattr", "sort", "string", "title",
    "trim", "truncate", "unique", "upper", "wordcount",
)
# fmt: on
# fmt: off
_METHODS = (
    "capitalize", "endswith", "lower", "lstrip", "removeprefix", "removesuffix", "rstrip", "split", "startswith",
    "strip", "title", "upper",
)
# fmt: on
_MOST_NESTED_LOOPS = 2
_LONGEST_TEMPLATE = 20_000


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
        return frozenset().union(*(_compiled(source)[1] for source in self._sources()))

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
        if self.template.endswith(_LISTING_END) and isinstance(values.get("choices"), str):
            raise DataFileError(_one_choice(row, name))
        texts = [_fill(source, values, row, name) for source in self._sources()]
        return texts[0], texts[1] if len(texts) > 1 else None

    def render_choices(self, row: Row, name: str) -> tuple[str, tuple[str, ...]]:
        """Fill the first template once, and the second with ``choice`` set to each of the row's choices.

        Args:
            row: The row.
            name: What messages call its file.

        Returns:
            The text, and one text per choice.

        Raises:
            DataFileError: There are no choices, or something else is wrong as in :meth:`render`.
        """
        assert self.pair_template is not None
        choices = _value(row, "choices", name)
        if isinstance(choices, str):
            raise DataFileError(_one_choice(row, name))
        if not choices:
            raise DataFileError(f"{name}:{row.line} has no choices; fill them in or remove the row.")
        fields = self.fields() - {"choice"}
        values = {key: _value(row, key, name) for key in sorted(fields)}
        context = _fill(self.template, values, row, name)
        return context, tuple(_fill(self.pair_template, {**values, "choice": c}, row, name) for c in choices)

    def _sources(self) -> tuple[str, ...]:
        return (self.template,) if self.pair_template is None else (self.template, self.pair_template)


def join_pair(form: RowFormat) -> RowFormat:
    """Make one text of two, for tokenizers that put nothing between them.

    Args:
        form: Of one text or two.

    Returns:
        Of one text.
    """
    return form if form.pair_template is None else RowFormat(f"{form.template}\n{form.pair_template}")


def close_template(form: RowFormat, eos_token: str | None, name: str) -> RowFormat:
    """Put the tokenizer's end-of-sequence token where a template asks for it by ``{{ eos_token }}``.

    Args:
        form: The templates.
        eos_token: The token; None where the tokenizer has none.
        name: What messages call the data.

    Returns:
        Templates with the token itself, which is what is saved: it belongs to the adapter's tokenizer.

    Raises:
        DataFileError: There is no such token, or it cannot stand in a template.
    """
    if not any(_EOS.search(source) for source in (form.template, form.pair_template or "")):
        return form
    if eos_token is None or "{" in eos_token:
        raise DataFileError(
            f"the prompt of {name} ends in an end-of-sequence token, and the tokenizer has none; give --template."
        )
    # A function, since a token may hold backslashes.
    pair = None if form.pair_template is None else _EOS.sub(lambda _: eos_token, form.pair_template)
    return RowFormat(_EOS.sub(lambda _: eos_token, form.template), pair)


_EOS = re.compile(r"\{\{\s*eos_token\s*\}\}")
_CHOICES = RowFormat("{{ question }}{% for choice in choices %}\n{{ letters[loop.index0] }}. {{ choice }}{% endfor %}")
_LISTING_END = "{% endfor %}"
#: Fields of the shapes that data files come in, and how each is written out. The first that fits counts.
Shape = tuple[tuple[str, ...], RowFormat]
CHOICES_SHAPE = ("question", "choices")
SHAPES: tuple[Shape, ...] = (
    (("passage", "question"), RowFormat("{{ question }}", "{{ passage }}")),
    (("premise", "hypothesis"), RowFormat("{{ premise }}", "{{ hypothesis }}")),
    (CHOICES_SHAPE, _CHOICES),
    (("text",), RowFormat("{{ text }}")),
)


def row_format(row: Row, name: str, pairs: bool, shapes: Sequence[Shape] = SHAPES) -> RowFormat:
    """Recognise the shape of a file by its first row.

    Args:
        row: The first row.
        name: What messages call the file.
        pairs: Whether the tokenizer puts something between two texts; else they are joined by a line break.
        shapes: Those that are known.

    Returns:
        How its rows are written out.

    Raises:
        DataFileError: The shape is none of those known.
    """
    for fields, form in shapes:
        if all(field in row.fields for field in fields):
            return form if pairs else join_pair(form)
    known = " or ".join("+".join(fields) for fields, _ in shapes)
    raise DataFileError(
        f"{name}:{row.line} has the fields {_found(row)}; name them {known}, or give train or fit a --template."
    )


def _one_choice(row: Row, name: str) -> str:
    return (
        f"{name}:{row.line}: 'choices' holds one text, not a list of them; write the rows as JSONL, or give --template."
    )


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals = {"letters": LETTERS}
    environment.filters = {name: environment.filters[name] for name in _FILTERS}
    return environment


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[Template, frozenset[str]]:
    """Compile a template and list the fields that it uses."""
    try:
        if len(source) > _LONGEST_TEMPLATE:
            raise SecurityError(f"longer than {_LONGEST_TEMPLATE} characters")
        if not is_text(source):
            raise SecurityError("no UTF-8 text")
        tree = _environment().parse(source)
        _refuse_growth(tree)
        return _environment().from_string(tree), frozenset(meta.find_undeclared_variables(tree))
    except Exception as error:  # of Jinja, and of Python's compiler behind it
        raise DataFileError(
            f"the template {_shown(source)} is malformed ({first_line(error)}); see the Jinja documentation."
        ) from None


def _refuse_growth(tree: nodes.Template) -> None:
    for kind in _NO_NODES:
        if next(tree.find_all(kind), None) is not None:
            raise SecurityError(f"{kind.__name__} is not allowed")
    for used in tree.find_all(nodes.Filter):
        constants = [str(argument.value) for argument in used.args if isinstance(argument, nodes.Const)]
        if used.name == "replace" and not (len(constants) == 2 and len(constants[0]) >= max(1, len(constants[1]))):
            raise SecurityError("replace takes two texts, of which the second must not be the longer one")
    for call in tree.find_all(nodes.Call):
        if not (isinstance(call.node, nodes.Getattr) and call.node.attr in _METHODS):
            raise SecurityError("no calls are allowed but those of a text's methods, such as strip")
    _refuse_deep_loops(tree, 0)


def _refuse_deep_loops(node: nodes.Node, depth: int) -> None:
    if isinstance(node, nodes.For):
        depth += 1
        if depth > _MOST_NESTED_LOOPS or node.recursive:
            raise SecurityError("loops are nested too deeply")
    for child in node.iter_child_nodes():
        _refuse_deep_loops(child, depth)


def _fill(source: str, values: Mapping[str, Any], row: Row, name: str) -> str:
    template = _compiled(source)[0]
    try:
        text = template.render(values)
    except Exception as error:  # whatever a template's own expressions run into
        raise DataFileError(
            f"{name}:{row.line}: the template {_shown(source)} fails ({first_line(error)}); mend it."
        ) from None
    if not text.strip():
        raise DataFileError(f"{name}:{row.line} gives an empty text; remove the row or fill it in.")
    return text


def _value(row: Row, key: str, name: str) -> str | list[str]:
    if key == "letters" and key not in row.fields:
        return LETTERS
    if key not in row.fields:
        raise DataFileError(
            f"{name}:{row.line} lacks the field {key!r} (it has {_found(row)}); add it, or give fit another --template."
        )
    value = row.fields[key]
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise DataFileError(
                f"{name}:{row.line}: {key!r} holds a {type(item).__name__}, not text; write it as a string."
            )
        if isinstance(item, float) and not math.isfinite(item):
            raise DataFileError(f"{name}:{row.line}: {key!r} holds {item}, a missing value; fill it in or remove it.")
        if not is_text(str(item)):
            raise DataFileError(
                f"{name}:{row.line}: {key!r} holds half of a surrogate pair, which is no text; mend its escapes."
            )
    return [str(item) for item in value] if isinstance(value, list) else str(value)


def _found(row: Row) -> str:
    names = [field[:40] for field in row.fields]
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "") or "nothing"


def _shown(source: str) -> str:
    return repr(source if len(source) <= 200 else f"{source[:200]}...")
