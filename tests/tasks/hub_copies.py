"""Small copies of the hub's repositories, in the hub's own columns, types and layout, on made-up rows."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Features, Sequence, Value

from laplace_lora.tasks import TASKS, Task

Row = dict[str, Any]
TEXT = Value("string")
LETTERED = {"text": Sequence(TEXT), "label": Sequence(TEXT)}
#: Rows per split; nothing about them is like the real sets' sizes.
ROWS = {"train": 15, "validation": 7, "test": 6, "dev": 4}
# fmt: off
WORDS = (
    "the", "a", "film", "was", "is", "good", "bad", "dull", "bright", "slow", "fast", "very", "not", "and", "but",
    "food", "service", "place", "story", "plot", "acting",
)
# fmt: on


def text(*numbers: int) -> str:
    """A few words that differ from row to row."""
    return " ".join(WORDS[(7 * number + 3 * index) % len(WORDS)] for index, number in enumerate((*numbers, 1, 2)))


def _winogrande(i: int, split: str) -> Row:
    answer = "" if split == "test" else str(1 + i % 2)
    return {"sentence": f"{text(i)} _", "option1": text(i, 1), "option2": text(i, 2), "answer": answer}


def _arc(i: int, split: str) -> Row:
    """Row 3 has three choices, row 4 five, row 5 is numbered."""
    count = {3: 3, 4: 5}.get(i, 4)
    marks = ["1", "2", "3", "4"] if i == 5 else list("ABCDE"[:count])
    choices = {"text": [text(i, c) for c in range(count)], "label": marks}
    return {"id": f"arc-{split}-{i}", "question": text(i), "choices": choices, "answerKey": marks[i % count]}


def _openbookqa(i: int, split: str) -> Row:
    choices = {"text": [text(i, c) for c in range(4)], "label": list("ABCD")}
    return {"id": f"{i}", "question_stem": text(i), "choices": choices, "answerKey": "ABCD"[i % 4]}


def _commonsense_qa(i: int, split: str) -> Row:
    choices = {"label": list("ABCDE"), "text": [text(i, c) for c in range(5)]}
    answer = "" if split == "test" else "ABCDE"[i % 5]
    return {"id": f"{i}", "question": text(i), "question_concept": "film", "choices": choices, "answerKey": answer}


def _mmlu(i: int, split: str) -> Row:
    return {"question": text(i), "subject": "", "choices": [text(i, c) for c in range(4)], "answer": i % 4}


def _pair(i: int, split: str) -> Row:
    return {"sentence1": text(i), "sentence2": text(i, 1), "label": -1 if split == "test" else i % 2, "idx": i}


def _sentence(i: int, split: str) -> Row:
    return {"sentence": text(i), "label": -1 if split == "test" else i % 2, "idx": i}


def _wic(i: int, split: str) -> Row:
    return _pair(i, split) | {"word": "film", "start1": 0, "start2": 0, "end1": 4, "end2": 4}


def _boolq(i: int, split: str) -> Row:
    return {"question": text(i), "passage": text(i, 1), "idx": i, "label": -1 if split == "test" else i % 2}


_NUMBERS = {name: Value("int32") for name in ("start1", "start2", "end1", "end2", "idx")}
_NO_YES = ClassLabel(names=["False", "True"])
_PAIR = {"sentence1": TEXT, "sentence2": TEXT, "idx": Value("int32")}
_TREC = ClassLabel(names=["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"])
#: For every repository and kind of configuration, its columns and a row.
FORMATS: dict[str, tuple[Callable[[int, str], Row], Row]] = {
    "winogrande": (_winogrande, dict.fromkeys(("sentence", "option1", "option2", "answer"), TEXT)),
    "arc": (_arc, {"id": TEXT, "question": TEXT, "choices": LETTERED, "answerKey": TEXT}),
    "openbookqa": (_openbookqa, {"id": TEXT, "question_stem": TEXT, "choices": LETTERED, "answerKey": TEXT}),
    "boolq": (_boolq, {"question": TEXT, "passage": TEXT, "idx": Value("int32"), "label": _NO_YES}),
    "commonsense_qa": (
        _commonsense_qa,
        {"id": TEXT, "question": TEXT, "question_concept": TEXT, "choices": LETTERED, "answerKey": TEXT},
    ),
    "mmlu": (
        _mmlu,
        {"question": TEXT, "subject": TEXT, "choices": Sequence(TEXT), "answer": ClassLabel(names=list("ABCD"))},
    ),
    "rte": (_pair, _PAIR | {"label": ClassLabel(names=["entailment", "not_entailment"])}),
    "mrpc": (_pair, _PAIR | {"label": ClassLabel(names=["not_equivalent", "equivalent"])}),
    "wic": (_wic, {"word": TEXT, "sentence1": TEXT, "sentence2": TEXT, **_NUMBERS, "label": _NO_YES}),
    "cola": (
        _sentence,
        {"sentence": TEXT, "label": ClassLabel(names=["unacceptable", "acceptable"]), "idx": Value("int32")},
    ),
    "sst2": (
        _sentence,
        {"sentence": TEXT, "label": ClassLabel(names=["negative", "positive"]), "idx": Value("int32")},
    ),
    "trec": (
        lambda i, split: {"text": text(i), "coarse_label": i % 6, "fine_label": i},
        {"text": TEXT, "coarse_label": _TREC, "fine_label": ClassLabel(num_classes=50)},
    ),
    "ag_news": (
        lambda i, split: {"text": text(i), "label": i % 4},
        {"text": TEXT, "label": ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])},
    ),
}


def format_of(task: Task) -> tuple[Callable[[int, str], Row], Row]:
    """What the rows of a task's repository look like."""
    return next(found for name, found in FORMATS.items() if task.name.startswith(name))


def hub_rows(task: Task, split: str) -> list[Row]:
    """All rows of a split, all configurations, as the hub has them."""
    make, _ = format_of(task)
    theirs = task.hub.splits[split]
    rows = [(make(i, theirs), name) for name in task.hub.configurations for i in range(ROWS[theirs])]
    return [row | ({"subject": name} if "subject" in row else {}) for row, name in rows]


def write_copy(root: Path, tasks: Iterable[Task] = tuple(TASKS.values()), card: bool = True) -> Path:
    """Write repositories as the hub lays them out: a folder per configuration, Parquet, and the card's table."""
    configurations: dict[Path, dict[str, list[str]]] = {}
    for task in tasks:
        make, columns = format_of(task)
        repository = root / task.hub.repository
        for name in task.hub.configurations:
            folder = "data" if name == "default" else name
            converted = task.name == "trec"  # the hub's own conversion: a folder per split, and no card
            for split in dict.fromkeys(task.hub.splits.values()):
                rows = [
                    make(i, split) | ({"subject": name} if "subject" in columns else {}) for i in range(ROWS[split])
                ]
                file = f"default/{split}/0000.parquet" if converted else f"{folder}/{split}-00000-of-00001.parquet"
                path = repository / file
                path.parent.mkdir(parents=True, exist_ok=True)
                datasets.Dataset.from_list(rows, features=Features(columns)).to_parquet(path)
                if not converted:
                    configurations.setdefault(repository, {}).setdefault(name, []).append(split)
    for repository, found in configurations.items() if card else ():
        (repository / "README.md").write_text(_card(found), encoding="utf-8")
    return root


def _card(configurations: dict[str, list[str]]) -> str:
    lines = ["---", "configs:"]
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        folder = "data" if name == "default" else name
        for split in dict.fromkeys(splits):
            lines += [f"  - split: {split}", f"    path: {folder}/{split}-*"]
    return "\n".join([*lines, "---", ""])
