"""How rows of a data file become inputs, for each way of reading a model: one table row per readout."""

import dataclasses
from typing import Literal

from laplace_lora.data.files import Row
from laplace_lora.data.sources import Style
from laplace_lora.data.templates import CHOICES_SHAPE, LETTERS, SHAPES, RowFormat, Shape, row_format

#: ``single``: a text, or a pair that the tokenizer joins. ``choices``: the second text once per entry of the row's
#: ``choices``. ``pair``: two texts of their own. ``continuation``: the second text follows the first.
Parts = Literal["single", "choices", "pair", "continuation"]

#: The paper's prompts (Yang et al., 2024): choices by their letters, and BoolQ, whose answer is read at the last token.
SELECT = "Select one of the choices that answers the following question: "
LISTED = " Choices:{% for choice in choices %} {{ letters[loop.index0] }}. {{ choice }}{% endfor %} Answer:"
BOOLQ = "Answer the question with only True or False: {{ question }} Context: {{ passage }}{{ eos_token }}"
_LISTED = SELECT + "{{ question }}" + LISTED

_QUESTION = "Question: {{ question }}\nAnswer:"

#: Prompts for a language model that answers by one token. The second and third are the paper's (Yang et al., 2024).
ANSWER_SHAPES: tuple[Shape, ...] = (
    (("passage", "question", "choices"), RowFormat("{{ passage }} " + _LISTED)),
    (
        ("passage", "question"),
        RowFormat(BOOLQ),
    ),
    (("question", "choices"), RowFormat(_LISTED)),
    (("premise", "hypothesis"), RowFormat("{{ premise }}\n{{ hypothesis }}\nAnswer:")),
    (("text",), RowFormat("{{ text }}\nAnswer:")),
)
#: Answers that a shape's prompt asks for.
ANSWERS: dict[tuple[str, ...], tuple[str, ...]] = {("passage", "question"): ("False", "True")}

_ENCODER_OPTIONS: tuple[Shape, ...] = (
    (("passage", "question", "choices"), RowFormat("{{ passage }} {{ question }}", "{{ choice }}")),
    (("question", "choices"), RowFormat("{{ question }}", "{{ choice }}")),
    (("premise", "choices"), RowFormat("{{ premise }}", "{{ choice }}")),
)
_LANGUAGE_OPTIONS: tuple[Shape, ...] = (
    (
        ("passage", "question", "choices"),
        RowFormat("{{ passage }}\n" + _QUESTION, " {{ choice }}"),
    ),
    (("question", "choices"), RowFormat(_QUESTION, " {{ choice }}")),
    (("premise", "choices"), RowFormat("{{ premise }}", " {{ choice }}")),
)
_PAIRS: tuple[Shape, ...] = (
    (("prompt", "chosen", "rejected"), RowFormat("{{ prompt }}{{ chosen }}", "{{ prompt }}{{ rejected }}")),
    (("chosen", "rejected"), RowFormat("{{ chosen }}", "{{ rejected }}")),
)
_COMPLETIONS: tuple[Shape, ...] = (
    (("prompt", "completion"), RowFormat("{{ prompt }}", "{{ completion }}")),
    (
        ("instruction", "input", "output"),
        RowFormat("{{ instruction }}\n{% if input %}{{ input }}\n{% endif %}", "{{ output }}"),
    ),
    (("instruction", "output"), RowFormat("{{ instruction }}\n", "{{ output }}")),
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How rows become inputs.

    Attributes:
        shapes: Fields of the files that are known, and how each is written out. The first that fits counts.
        parts: What the two texts are to each other.
        labels: Whether rows need a label: ``class`` (an index or name), ``real`` (a number), ``none``.
        keep_end: Whether too long inputs lose their beginning: what is read is at their end.
        style: What sources that write their rows out themselves call this.
    """

    shapes: tuple[Shape, ...] = SHAPES
    parts: Parts = "single"
    labels: Literal["class", "real", "none"] = "class"
    keep_end: bool = False
    style: Style = "other"

    def recognise(self, row: Row, name: str, pairs: bool) -> RowFormat:
        """Recognise the shape of a file by its first row.

        Args:
            row: The first row.
            name: What messages call the file.
            pairs: Whether the tokenizer puts something between two texts; else they are joined by a line break.

        Returns:
            How its rows are written out.
        """
        return row_format(row, name, pairs or self.parts != "single", self.shapes)

    def pair_template(self, row: Row) -> str | None:
        """Return the second template of a row's shape, for a first one that somebody gave.

        Args:
            row: A row.

        Returns:
            The template; None where rows have one text.
        """
        fitting = (form.pair_template for fields, form in self.shapes if set(fields) <= set(row.fields))
        seconds = (form.pair_template for _, form in self.shapes)
        return next(fitting, None) or next(seconds, None)


CLASSES = Layout(style="class")
_OF_READOUT: dict[tuple[str, bool], Layout] = {
    ("class_logits", False): CLASSES,
    ("scalar", False): Layout(labels="real"),
    ("answer_tokens", False): Layout(ANSWER_SHAPES, keep_end=True, style="answers"),
    ("option_scores", True): Layout(_ENCODER_OPTIONS, "choices", style="encoder-options"),
    ("option_scores", False): Layout(_LANGUAGE_OPTIONS, "choices", keep_end=True, style="options"),
    ("pairwise_reward", False): Layout(_PAIRS, "pair", "none", keep_end=True),
    ("next_token", False): Layout(_COMPLETIONS, "continuation", "none", keep_end=True),
}


def layout_of(readout: str, multiple_choice: bool = False) -> Layout:
    """Return the layout of a readout.

    Args:
        readout: Its name.
        multiple_choice: Whether options are scored by a multiple-choice encoder, not a language model.

    Returns:
        The layout.
    """
    return _OF_READOUT[(readout, multiple_choice)]


def default_answers(form: RowFormat, row: Row, names: tuple[str, ...] | None, most: int) -> tuple[str, ...] | None:
    """Return the words by which a prompt is answered where nobody says.

    Args:
        form: How rows are written out.
        row: A row.
        names: Names of the classes, or None.
        most: Number of choices of the row that has most.

    Returns:
        The words: letters where the prompt lists choices by them, what the prompt asks for, or the names of the
        classes; None if there are none.
    """
    for fields, known in ANSWER_SHAPES:
        # Which token closes the prompt is the tokenizer's own.
        if fields in ANSWERS and form.template.startswith(known.template.removesuffix("{{ eos_token }}")):
            return ANSWERS[fields]
        if form == known and set(CHOICES_SHAPE) <= set(fields):
            return tuple(LETTERS[: max(most, 2)])
    return names
