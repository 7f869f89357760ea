"""What is known of a task: where its rows are, how many there are, and how they are asked."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from laplace_lora.data import LETTERS, RowFormat, Style
from laplace_lora.tasks.prompts import LISTING, PAPER, encoder_option_form, option_form

Fields = dict[str, Any]


def _any_row(row: Mapping[str, Any]) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Hub:
    """Where a task's rows are on the Hugging Face hub.

    Attributes:
        repository: Id of the data set.
        configurations: Names of its configurations, whose rows follow each other.
        revision: Commit of the repository, so that the rows stay what they are.
        splits: What the repository calls ``train``, ``validation`` and ``test``, those that it has.
        licence: As its card states it.
    """

    repository: str
    configurations: tuple[str, ...]
    revision: str
    splits: Mapping[str, str]
    licence: str

    @property
    def shown(self) -> str:
        """One line for people."""
        return f"{self.repository} ({', '.join(self.configurations)}) at {self.revision[:12]}"


@dataclasses.dataclass(frozen=True)
class Task:
    """One line of the table of tasks.

    Attributes:
        name: What the command line calls it.
        title: What readers call it.
        hub: Where its rows are.
        sizes: Rows of every split on the hub, before any filter.
        convert: Makes one of our rows of one of the hub's; its label is None where the hub hides it.
        fields: What our rows have beside ``label``.
        evaluation: Split that figures are measured on.
        hidden: Splits without labels on the hub.
        question: Jinja template of what is asked, for all ways of reading but a classifier's.
        prompts: Prompt of a language model that answers by one token, for each of ``PROMPTS``.
        class_form: What a classifier reads.
        words: Answers to the prompt; None for the letters of the choices.
        names: Names of the classes in the order of the labels; None where every row has choices of its own.
        options: Words for the classes where each is scored as an option; None where every row has choices of its own.
        belongs: Says of a row as it was found whether it is the task's at all, where a copy may hold others too.
        shares_repository: Whether other tasks are configurations of the same repository.
        choices: Number of choices; rows with another number are left out, which ``exactly`` says.
        exactly: Whether fewer choices are left out too.
        kept: Rows of every split that are not left out, where some are.
        aliases: Other names, also of folders.
        kin: Names of folders that hold the same rows for another task.
    """

    name: str
    title: str
    hub: Hub
    sizes: Mapping[str, int]
    convert: Callable[[Mapping[str, Any]], Fields]
    fields: tuple[str, ...]
    prompts: Mapping[str, str]
    question: str = "{{ question }}"
    evaluation: str = "validation"
    hidden: frozenset[str] = frozenset()
    class_form: RowFormat = LISTING
    words: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None
    belongs: Callable[[Mapping[str, Any]], bool] = _any_row
    shares_repository: bool = True
    choices: int = 2
    exactly: bool = True
    kept: Mapping[str, int] = dataclasses.field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    kin: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of folders that may hold its rows."""
        return (self.name, *self.aliases, *self.kin)

    @property
    def answers(self) -> tuple[str, ...]:
        """Words that answer the prompt, one per class."""
        return self.words or tuple(LETTERS[: self.choices])

    def form(self, style: Style, prompts: str = PAPER) -> RowFormat | None:
        """Say how rows are written out.

        Args:
            style: For which way of reading.
            prompts: Whose prompt, one of ``PROMPTS``.

        Returns:
            The templates; None for ways of reading that no task is for.
        """
        forms: dict[str, RowFormat] = {
            "class": self.class_form,
            "answers": RowFormat(self.prompts[prompts]),
            "options": option_form(self.question),
            "encoder-options": encoder_option_form(self.question),
        }
        return forms.get(style)

    def keeps(self, row: Fields) -> bool:
        """Say whether a row belongs to the task.

        Args:
            row: One of ours.

        Returns:
            False where it has another number of choices.
        """
        count = len(row["choices"])
        return count == self.choices if self.exactly else count <= self.choices
