"""The table of tasks: what a line promises, and prompts to the character, written out here once more by hand."""

import re

import pytest

from laplace_lora import LaplaceLoRAError
from laplace_lora.data import Row, RowFormat
from laplace_lora.tasks import PROMPTS, TASKS, find_task, is_task
from laplace_lora.tasks.mmlu import SUBJECTS

PAPERS = ("winogrande_s", "winogrande_m", "arc_challenge", "arc_easy", "openbookqa", "boolq")
GROUPS = tuple(f"mmlu_{group}" for group in ("cs", "eng", "law", "health", "chem", "phy"))
OTHERS = ("rte", "mrpc", "wic", "cola", "sst2", "commonsense_qa", "trec", "ag_news")


def test_all_are_there() -> None:
    assert {*PAPERS, *GROUPS, *OTHERS} <= set(TASKS)


@pytest.mark.parametrize("name", list(TASKS))
def test_every_line_is_whole(name: str) -> None:
    task = TASKS[name]
    assert re.fullmatch("[0-9a-f]{40}", task.hub.revision)
    assert task.evaluation in task.sizes
    assert task.evaluation not in task.hidden
    assert set(task.sizes) <= set(task.hub.splits)
    assert set(task.prompts) == set(PROMPTS)
    assert task.hub.licence
    assert len(task.answers) == task.choices
    assert (task.names is None) == (task.options is None)
    if task.names is not None:
        assert len(task.names) == len(task.options) == task.choices
    for style in ("class", "answers", "options", "encoder-options"):
        fields = task.form(style).fields() - {"choice", "letters", "eos_token"}
        assert fields <= {*task.fields, "choices"}
    assert task.form("other") is None


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("winogrande_s", 640, 1267),
        ("winogrande_m", 2558, 1267),
        ("arc_challenge", 1119, 299),
        ("arc_easy", 2251, 570),
        ("openbookqa", 4957, 500),
        ("boolq", 9427, 3270),
    ],
)
def test_the_papers_sizes(name: str, train: int, test: int) -> None:
    """Before the four-option filter; the hub's validation split is what the paper tests on."""
    task = find_task(name)
    assert (task.sizes["train"], task.sizes["validation"]) == (train, test)
    assert task.evaluation == "validation"


def test_groups_of_mmlu() -> None:
    sizes = {name: TASKS[name].sizes["test"] for name in GROUPS}
    assert sizes == {
        "mmlu_cs": 412,
        "mmlu_eng": 145,
        "mmlu_law": 1763,
        "mmlu_health": 1540,
        "mmlu_chem": 100,
        "mmlu_phy": 102,
    }
    assert len({subject for group in SUBJECTS.values() for subject in group}) == 17
    assert all(TASKS[name].evaluation == "test" for name in GROUPS)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("ARC-Challenge", "arc_challenge"),
        ("arc-e", "arc_easy"),
        ("OpenBookQA", "openbookqa"),
        ("OBQA", "openbookqa"),
        ("BoolQ", "boolq"),
        ("WG-S", "winogrande_s"),
        ("SST2", "sst2"),
        ("CommonsenseQA", "commonsense_qa"),
        ("MMLU computer science", "mmlu_cs"),
    ],
)
def test_names_in_any_spelling(name: str, found: str) -> None:
    assert find_task(name) is TASKS[found]


def test_an_unknown_name() -> None:
    assert not is_task("hellaswag")
    with pytest.raises(LaplaceLoRAError, match=r"no task 'hellaswag'; choose winogrande_s, .*ag_news\.$"):
        find_task("hellaswag")


CHOICES = ["one way", "Another.", "a third", "the last"]
QUESTION = "Which way is it?"


def _asked(name: str, prompts: str, **fields: object) -> str:
    form = TASKS[name].form("answers", prompts)
    assert form.pair_template is None
    closed = RowFormat(form.template.replace("{{ eos_token }}", "</s>"))
    return closed.render(Row(1, fields), "test")[0]


@pytest.mark.parametrize("name", ["arc_challenge", "arc_easy", "openbookqa", "mmlu_law", "mmlu_cs"])
def test_the_papers_prompt(name: str) -> None:
    assert _asked(name, "paper", question=QUESTION, choices=CHOICES) == (
        "Select one of the choices that answers the following question: Which way is it? "
        "Choices: A. one way B. Another. C. a third D. the last Answer:"
    )


def test_the_papers_prompt_of_winogrande() -> None:
    assert _asked("winogrande_s", "paper", question="The _ ran.", choices=["cat", "dog"]) == (
        "Select one of the choices that answers the following question: The _ ran. Choices: A. cat B. dog Answer:"
    )
    # The code forgets one full stop.
    assert _asked("winogrande_m", "paper-code", question="The _ ran.", choices=["cat", "dog"]) == (
        "Select one of the choices that answers the following question: The _ ran. Choices: A. cat. B dog. Answer:"
    )


@pytest.mark.parametrize("prompts", ["paper", "paper-code"])
def test_the_papers_prompt_of_boolq(prompts: str) -> None:
    assert _asked("boolq", prompts, question="is it so", passage="It is so.") == (
        "Answer the question with only True or False: is it so Context: It is so.</s>"
    )
    assert TASKS["boolq"].answers == ("False", "True")


@pytest.mark.parametrize("name", ["arc_easy", "openbookqa"])
def test_the_codes_prompt(name: str) -> None:
    texts = [text if text.endswith(".") else text + "." for text in CHOICES]
    texts = [text[0].upper() + text[1:] for text in texts]
    listed = " ".join(f"{label}. {text}" for label, text in zip("ABCD", texts, strict=True))
    assert _asked(name, "paper-code", question=QUESTION, choices=CHOICES) == (
        f"Select one of the choices that answers the following question: {QUESTION} Choices: {listed} Answer:"
    )


def test_the_successors_prompts() -> None:
    start = "Return the label of the correct answer for the question below.\n\nQuestion: Which way is it?\n"
    swapped = "\n".join(f"{text}) {label}" for text, label in zip(CHOICES, "ABCD", strict=True))
    straight = "\n".join(f"{label}) {text}" for text, label in zip(CHOICES, "ABCD", strict=True))

    def asked(name: str) -> str:
        return _asked(name, "successors", question=QUESTION, choices=CHOICES)

    assert asked("arc_easy_5") == f"{start}Choices:\n{swapped}\nAnswer:"
    assert asked("openbookqa") == f"{start}Chioces:\n{swapped}\nAnswer:"
    assert asked("mmlu_phy") == f"{start}Choices:\n{straight}\nAnswer:"
    assert _asked("winogrande_s", "successors", question=QUESTION, choices=CHOICES[:2]) == (
        f"{start}Choices:\nA) one way\nB) Another.\nAnswer:</s>"
    )
    assert _asked("boolq", "successors", question="is it so", passage="x" * 2000) == (
        "Read the passage below and answer the question with the words 'true' or 'false'.\n\n"
        f"Passage: {'x' * 1024}\nQuestion: is it so\nAnswer (true or false):</s>"
    )


def test_five_labels_keep_every_question() -> None:
    for name in ("arc_challenge", "arc_easy"):
        four, five = TASKS[name], TASKS[f"{name}_5"]
        assert [five.keeps({"choices": ["x"] * count}) for count in (3, 4, 5, 6)] == [True, True, True, False]
        assert [four.keeps({"choices": ["x"] * count}) for count in (3, 4, 5)] == [False, True, False]
        assert four.answers == tuple("ABCD")
        assert five.answers == tuple("ABCDE")
