"""Splits of tasks from every place that they can be in."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from laplace_lora.data import open_rows
from laplace_lora.errors import DataFileError, MissingExtraError
from laplace_lora.tasks import TASKS, Task, TaskSplit, find_task
from laplace_lora.tasks import hub as hub_module
from tasks.hub_copies import ROWS, hub_rows, text, write_copy

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data, not part of the project")


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of copies of all repositories."""
    return write_copy(tmp_path_factory.mktemp("copies"))


SPLITS = [(task.name, split) for task in TASKS.values() for split in task.hub.splits]


def _expected(task: Task, row: dict[str, Any]) -> dict[str, Any]:
    """One of our rows by plain rules, written apart from the converters."""
    if "option1" in row:
        label = {"1": 0, "2": 1}.get(row["answer"])
        return {"question": row["sentence"], "choices": [row["option1"], row["option2"]], "label": label}
    if "answerKey" in row:
        choices = row["choices"]
        label = choices["label"].index(row["answerKey"]) if row["answerKey"] else None
        return {"question": row.get("question_stem", row.get("question")), "choices": choices["text"], "label": label}
    if "subject" in row:
        kept = {name: row[name] for name in ("question", "choices", "subject")}
        return kept | {"label": row["answer"]}
    label = row.get("coarse_label", row.get("label"))
    ours: dict[str, Any] = {"label": None if label == -1 else label, "choices": list(task.options or ())}
    names = {"sentence1": "premise", "sentence2": "hypothesis", "sentence": "text"}
    kept = {names.get(key, key): value for key, value in row.items() if names.get(key, key) in task.fields}
    return ours | kept


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_the_hubs_own_format(copies: Path, name: str, split: str) -> None:
    task = TASKS[name]
    source = TaskSplit(task, split, copies)
    expected = [_expected(task, row) for row in hub_rows(task, split)]
    kept = [(line, row) for line, row in enumerate(expected, start=1) if task.keeps(row)]
    found = list(open_rows(source))
    assert len(source) == len(kept)
    for row, (line, fields) in zip(found, kept, strict=True):
        assert row.line == line
        assert {key: row.fields[key] for key in fields} == fields
    assert source.own_split  # a handful of rows is nobody's published split
    assert "OWN SPLIT" in source.shown


def test_the_filter_and_relabelling_of_arc(copies: Path) -> None:
    source = TaskSplit(find_task("arc_easy"), "train", copies)
    rows = {row.line: row.fields for row in open_rows(source)}
    assert set(range(1, 16)) - set(rows) == {4, 5}  # three choices, five choices
    assert all(len(row["choices"]) == 4 for row in rows.values())
    assert rows[6]["label"] == 5 % 4  # numbered 1 to 4
    assert "2 of 15 rows without exactly 4 choices left out" in source.shown
    assert source.provenance()["left_out"] == 2
    assert len(TaskSplit(find_task("arc_easy_5"), "train", copies)) == 15


@pytest.mark.parametrize("layout", ["card", "no card", "owner--name", "task", "cache", "saved"])
def test_layouts_of_copies(tmp_path: Path, layout: str) -> None:
    task = TASKS["openbookqa"]
    write_copy(tmp_path / "all", [task], card=layout != "no card")
    folder, repository = tmp_path / "all", tmp_path / "all" / task.hub.repository
    if layout == "owner--name":
        repository.rename(folder / "allenai--openbookqa")
    elif layout == "task":
        repository.rename(folder / "openbookqa")
    elif layout == "cache":
        snapshot = folder / "datasets--allenai--openbookqa" / "snapshots" / task.hub.revision
        snapshot.parent.mkdir(parents=True)
        repository.rename(snapshot)
    elif layout == "saved":
        parts = {
            split: datasets.Dataset.from_parquet(str(repository / "main" / f"{split}-00000-of-00001.parquet"))
            for split in ("train", "validation", "test")
        }
        folder = tmp_path / "saved"
        datasets.DatasetDict(parts).save_to_disk(folder / "openbookqa")
    assert len(TaskSplit(task, "train", folder)) == ROWS["train"]
    assert [row.fields["label"] for row in open_rows(TaskSplit(task, "validation", folder))] == [0, 1, 2, 3, 0, 1, 2]


def test_a_copy_with_the_hubs_number_of_rows_is_its_split(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS["openbookqa"]
    monkeypatch.setitem(task.sizes, "train", ROWS["train"])
    monkeypatch.setitem(task.sizes, "validation", ROWS["validation"])
    assert not TaskSplit(task, "train", copies).own_split
    assert not TaskSplit(task, "train[:80%]", copies).own_split
    assert not TaskSplit(task, "train[80%:]", copies).own_split
    assert TaskSplit(task, "train[:5]", copies).own_split
    whole = TaskSplit(task, "validation", copies)
    assert whole.provenance()["published_split"]
    assert not whole.own_split
    assert TaskSplit(task, "validation[:5]", copies).own_split


class _Hub:
    """Stands for the hub: notes what is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.task = task
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def load(self, repository: str, configuration: str, *, split: str, revision: str) -> list[dict[str, Any]]:
        self.asked.append((repository, configuration, split, revision))
        ours = next(name for name, theirs in self.task.hub.splits.items() if theirs == split)
        rows = hub_rows(self.task, ours)
        share = len(rows) // len(self.task.hub.configurations)
        index = self.task.hub.configurations.index(configuration)
        return rows[index * share : (index + 1) * share]


@pytest.mark.parametrize("name", list(TASKS))
def test_what_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    task, split = TASKS[name], "train"
    hub = _Hub(monkeypatch, task)
    monkeypatch.setitem(task.sizes, split, len(hub_rows(task, split)))
    source = TaskSplit(task, split)
    assert hub.asked == []  # nothing before it is wanted
    rows = list(open_rows(source))
    assert len(rows) == len(source)
    theirs, revision = task.hub.splits[split], task.hub.revision
    assert hub.asked == [(task.hub.repository, name, theirs, revision) for name in task.hub.configurations]
    assert not source.own_split
    assert "the hub" in source.shown


def test_another_number_of_rows_on_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _Hub(monkeypatch, TASKS["rte"])
    with pytest.raises(DataFileError, match=r"rte:train has 15 rows on the hub, and 2490 are known of"):
        len(TaskSplit(TASKS["rte"], "train"))


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataFileError, match=r"no route.*check the network, or give --data-dir a folder with a copy\.$"):
        len(TaskSplit(TASKS["rte"], "train"))
    with pytest.raises(DataFileError, match=r"trec has no validation split on the hub; choose train, test, or a part"):
        len(TaskSplit(TASKS["trec"], "validation"))


def test_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"laplace-lora\[datasets\]"):
        len(TaskSplit(TASKS["rte"], "train"))


# Parts of splits.


@pytest.mark.parametrize("count", [*range(5, 60), 640, 1117, 2241, 2558, 4957, 9427])
def test_the_last_fifth_is_what_the_authors_hold_out(tmp_path: Path, count: int) -> None:
    """The oracle is the call in their script: train_test_split(test_size=0.2, shuffle=False)."""
    rows = [{"text": f"row {i}", "label": i % 2} for i in range(count)]
    folder = _write(tmp_path / "cola", train=rows)
    parts = datasets.Dataset.from_list(rows).train_test_split(test_size=0.2, shuffle=False)
    for selection, part in (("train[:80%]", "train"), ("train[80%:]", "test")):
        ours = [row.fields["text"] for row in open_rows(TaskSplit(TASKS["cola"], selection, folder))]
        assert ours == list(parts[part]["text"])


@pytest.mark.parametrize(
    ("selection", "expected"),
    [("train[:3]", [0, 1, 2]), ("train[7:]", [7, 8, 9]), ("train[2:4]", [2, 3]), ("train[10%:30%]", [1, 2])],
)
def test_parts(tmp_path: Path, selection: str, expected: list[int]) -> None:
    folder = _write(tmp_path / "cola", train=[{"text": f"{i}", "label": 0} for i in range(10)])
    source = TaskSplit(TASKS["cola"], selection, folder)
    assert [int(row.fields["text"]) for row in open_rows(source)] == expected
    assert str(source) == f"cola:{selection}"


@pytest.mark.parametrize("selection", ["tests", "train[", "train[a:b]", "train[1]", "", "train[:-5]"])
def test_no_such_part(selection: str) -> None:
    with pytest.raises(DataFileError, match=r"is no part of cola; write a split"):
        TaskSplit(TASKS["cola"], selection)


def test_an_empty_part(tmp_path: Path) -> None:
    folder = _write(tmp_path / "cola", train=[{"text": "x", "label": 0}])
    with pytest.raises(DataFileError, match=r"cola:train\[5:\] has no rows: the split has 1"):
        len(TaskSplit(TASKS["cola"], "train[5:]", folder))


# Folders of files.


def _write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = [json.dumps(row) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder.parent


def test_files_in_our_columns_or_the_hubs(tmp_path: Path) -> None:
    task = TASKS["boolq"]
    ours = [{"passage": "p", "question": "q", "label": 1}, {"passage": "p", "question": "r", "label": "False"}]
    theirs = [{"passage": "p", "question": "q", "answer": True}, {"passage": "p", "question": "r", "answer": False}]
    for rows in (ours, theirs):
        folder = _write(tmp_path / "boolq_passage", train=rows)
        found = [row.fields for row in open_rows(TaskSplit(task, "train", folder))]
        assert [(row["question"], row["label"], row["choices"]) for row in found] == [
            ("q", 1, ["no", "yes"]),
            ("r", 0, ["no", "yes"]),
        ]


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.csv").write_text("text,label\nthe film,positive\nthe plot,0\n")
    labels = [row.fields["label"] for row in open_rows(TaskSplit(TASKS["sst2"], "train", tmp_path))]
    assert labels == [1, "0"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"sentence": "x"}, r"cola:train:1 has the columns sentence and lacks 'label'"),
        ({"question": text(1), "label": 0}, r"cola:train:1 has the columns question, label and lacks 'sentence'"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    folder = _write(tmp_path / "cola", train=[row])
    with pytest.raises(DataFileError, match=said):
        len(TaskSplit(TASKS["cola"], "train", folder))


def test_an_answer_that_is_no_choice(tmp_path: Path) -> None:
    row = {"question": "q", "choices": {"text": ["x", "y", "z", "w"], "label": list("ABCD")}, "answerKey": "E"}
    folder = _write(tmp_path / "arc_easy", train=[row])
    with pytest.raises(DataFileError, match=r"arc_easy:train:1 cannot be read \(the answer 'E' is none of"):
        len(TaskSplit(TASKS["arc_easy"], "train", folder))


def test_every_row_is_left_out(tmp_path: Path) -> None:
    row = {"question": "q", "choices": list("abcde"), "label": 0}
    folder = _write(tmp_path / "arc_easy", train=[row] * 10, validation=[])
    with pytest.raises(DataFileError, match=r"none of the 10 rows of arc_easy:train has exactly 4 choices"):
        len(TaskSplit(TASKS["arc_easy"], "train", folder))
    with pytest.raises(DataFileError, match=r"arc_easy:validation has no rows in .*check the copy\.$"):
        len(TaskSplit(TASKS["arc_easy"], "validation", folder))


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        (
            "boolq",
            {"passage": "p", "question": "q", "choices": ["yes", "no"], "label": 0},
            "its choices are yes, no, and",
        ),
        ("winogrande_s", {"sentence": "s", "option1": "a", "option2": "b", "answer": "3"}, "'3' is neither 1 nor 2"),
    ],
)
def test_rows_that_mean_something_else(tmp_path: Path, name: str, row: dict[str, Any], said: str) -> None:
    folder = _write(tmp_path / name, train=[row])
    with pytest.raises(DataFileError, match=rf"{name}:train:1 cannot be read \(.*{said}"):
        len(TaskSplit(TASKS[name], "train", folder))


def test_choices_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "openbookqa").mkdir()
    (tmp_path / "openbookqa" / "train.csv").write_text("question,choices,label\nq,a|b|c|d,0\n")
    with pytest.raises(DataFileError, match=r"a cell of a table holds one text, .*write the rows as JSONL"):
        len(TaskSplit(TASKS["openbookqa"], "train", tmp_path))


# Copies that hold other rows too.


def test_another_configuration_is_not_taken_for_the_task(tmp_path: Path) -> None:
    write_copy(tmp_path, [TASKS["arc_easy"]], card=False)
    assert len(TaskSplit(TASKS["arc_easy"], "train", tmp_path)) == 13
    with pytest.raises(DataFileError, match=r"arc_challenge:train cannot be read .*there is no configuration"):
        len(TaskSplit(TASKS["arc_challenge"], "train", tmp_path))


def test_a_saved_set_must_say_which_it_is(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"sentence": "x", "label": 0, "idx": 0}])
    datasets.DatasetDict(train=rows).save_to_disk(tmp_path / "glue")
    with pytest.raises(DataFileError, match=r"does not say that it is cola: name its folder cola"):
        len(TaskSplit(TASKS["cola"], "train", tmp_path))
    (tmp_path / "glue").rename(tmp_path / "cola")
    assert len(TaskSplit(TASKS["cola"], "train", tmp_path)) == 1


def test_other_subjects_are_no_part_of_a_group(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "choices": list("abcd"), "label": 0, "subject": subject}
        for subject in ("anatomy", "college physics", "college_physics")
    ]
    folder = _write(tmp_path / "mmlu_phy", test=rows)
    assert len(TaskSplit(TASKS["mmlu_phy"], "test", folder)) == 2


def test_a_split_that_the_hub_has_not(copies: Path) -> None:
    with pytest.raises(DataFileError, match=r"trec has no validation split on the hub; choose train, test, or a part"):
        len(TaskSplit(TASKS["trec"], "validation", copies))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"no cola:train in .*leave out --data-dir\.$"):
        len(TaskSplit(TASKS["cola"], "train", tmp_path))
    with pytest.raises(DataFileError, match=r"is no folder"):
        len(TaskSplit(TASKS["cola"], "train", tmp_path / "nowhere"))


def test_a_test_file_may_be_the_hubs_validation_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub hides the test labels, copies call the validation split `test`."""
    task = TASKS["rte"]
    monkeypatch.setitem(task.sizes, "validation", 3)
    rows = [{"premise": "x", "hypothesis": "y", "label": 0}] * 3
    folder = _write(tmp_path / "rte", test=rows, validation=rows[:2])
    source = TaskSplit(task, "validation", folder)
    assert len(source) == 3
    assert source.provenance()["hub_split"] == "validation"
    assert not source.own_split
    assert "rte/test.jsonl; by its 3 rows the hub's validation split" in source.shown
    assert "rte/validation.jsonl is another split, to be named as a file" in source.shown
    # One set of rows has one name: nothing is tuned on what is measured.
    with pytest.raises(DataFileError, match=r"hides the labels of test: name it rte:validation\.$"):
        len(TaskSplit(task, "test", folder))


@needs_shared
@pytest.mark.parametrize(
    ("name", "split", "rows", "hub_split"),
    [
        ("winogrande_s", "train", 640, "train"),
        ("winogrande_s", "validation", 1267, "validation"),
        ("winogrande_m", "train", 2558, "train"),
        ("winogrande_m", "validation", 1267, "validation"),
        ("arc_challenge", "train", 1117, "train"),
        ("arc_challenge", "validation", 291, None),
        ("arc_challenge", "test", 1165, "test"),
        ("arc_easy", "train", 1991, None),
        ("arc_easy", "test", 2365, "test"),
        ("openbookqa", "train", 4957, "train"),
        ("openbookqa", "train[:80%]", 3965, "train"),
        ("openbookqa", "train[80%:]", 992, "train"),
        ("openbookqa", "validation", 500, "validation"),
        ("boolq", "train", 2000, None),
        ("boolq", "validation", 270, None),
        ("boolq", "test", 1000, None),
        ("mmlu_cs", "test", 412, "test"),
        ("mmlu_eng", "test", 145, "test"),
        ("mmlu_law", "test", 1763, "test"),
        ("mmlu_health", "test", 1540, "test"),
        ("rte", "validation", 277, "validation"),
        ("rte", "train", 2240, None),
        ("sst2", "validation", 872, "validation"),
        ("sst2", "train", 6920, None),
    ],
)
def test_real_rows(name: str, split: str, rows: int, hub_split: str | None) -> None:
    source = TaskSplit(TASKS[name], split, SHARED)
    assert len(source) == rows
    assert source.provenance()["hub_split"] == hub_split
    assert source.own_split == (hub_split is None)
    labels = {row.fields["label"] for row in open_rows(source)}
    assert labels <= set(range(TASKS[name].choices))
