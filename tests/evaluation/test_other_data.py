"""Evaluating on several data sets of other kinds, labelled or not, and saying where every figure is from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.folders import rows, write_jsonl
from evaluation.conftest import Split
from laplace_lora.commands.methods import as_wide
from laplace_lora.errors import DataFileError, LaplaceLoRAError
from laplace_lora.evaluation import Logits, compare, load_outputs, ood_scores
from laplace_lora.evaluation.side_by_side import OWN_SPLIT_NOTE


def said(found: Any) -> list[str]:
    messages = [json.loads(line) for line in found.messages.splitlines()]
    return [entry["message"] for entry in messages if entry["event"] == "ood"]


def test_labelled_and_unlabelled_sets(evaluate: Any, tmp_path: Path) -> None:
    labelled = write_jsonl(tmp_path / "labelled.jsonl", rows(50, 2, seed=7))
    unlabelled = write_jsonl(tmp_path / "unlabelled.jsonl", [{"text": row["text"]} for row in rows(9, 2, seed=8)])
    found = evaluate(labelled, unlabelled)
    assert said(found) == []
    entries = found.metrics["ood"]
    assert list(entries) == [str(labelled), str(unlabelled)]
    saved = load_outputs(found.out / "outputs.safetensors")
    for path, n in ((labelled, 50), (unlabelled, 9)):
        entry, held = entries[str(path)], saved.ood[str(path)]
        assert (entry["n"], entry["data"]) == (n, {"file": str(path), "rows": n})
        assert entry["labels_ignored"] is None
        detection = ood_scores(
            saved.data.probabilities,
            held.probabilities,
            in_mutual_information=saved.data.mutual_information,
            out_mutual_information=held.mutual_information,
        )
        assert entry["detection"] == detection.to_dict()
    held = saved.ood[str(labelled)]
    assert held.labels.tolist() == [row["label"] for row in rows(50, 2, seed=7)]  # type: ignore[union-attr]
    by_hand = compare(held.probabilities, held.labels).to_dict()  # type: ignore[arg-type]
    assert entries[str(labelled)]["comparison"] == by_hand
    assert {"intervals", "accuracy", "nll", "ece", "brier"} <= set(by_hand["methods"]["laplace"])
    assert entries[str(unlabelled)]["comparison"] is None
    assert saved.ood[str(unlabelled)].labels is None
    # A line for each data set and method, in the terminal and in the report.
    for path, n in ((labelled, 50), (unlabelled, 9), (Path(found.metrics["data"]["file"]), 40)):
        assert f"{path}, n = {n}" in found.text
    page = (found.out / "report.html").read_text()
    table = page[page.index('aria-label="Data sets side by side"') :].split("</table>")[0]
    assert table.count("<tr>") == 1 + 3 * 2
    assert f"<h3>{labelled}</h3>" in page
    assert f"<h3>{unlabelled}</h3>" in page
    laplace = by_hand["methods"]["laplace"]
    assert f"{laplace['accuracy']:.3f}  {laplace['nll']:.3f}" in found.text


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        (rows(9, 3, seed=3), ":3: the label 2 is not an index from 0 to 1, the adapter's classes."),
        (
            [{"text": "red", "label": "yes"}] * 4,
            ":1: the label 'yes' is a name, and the order of the classes is not known",
        ),
        ([{"text": "red", "label": 0}, {"text": "blue"}], ":2: some rows have labels and some have none."),
        ([{"premise": "red", "hypothesis": "blue", "label": 1}] * 3, "its rows have other fields (premise, hypothesis"),
    ],
)
def test_labels_of_another_task_are_ignored_and_said_to_be(
    items: list[Any], reason: str, evaluate: Any, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "other.jsonl", items)
    found = evaluate(path)
    entry = found.metrics["ood"][str(path)]
    assert entry["comparison"] is None
    assert entry["detection"]["n_out"] == len(items)
    assert reason.rstrip(".") in entry["labels_ignored"]
    (message,) = said(found)
    assert message.startswith(f"labels of {path} are ignored, it is only told apart: ")
    assert reason in message
    assert message.endswith(".")


def test_rows_of_other_fields_without_labels_need_no_word(evaluate: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "other.jsonl", [{"premise": "red", "hypothesis": "blue"}] * 3)
    found = evaluate(path)
    assert said(found) == []
    assert found.metrics["ood"][str(path)]["labels_ignored"] is None


def test_bad_rows_are_still_an_error(evaluate: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "other.jsonl", [{"text": "red", "label": 5}, {"text": " ", "label": 0}])
    with pytest.raises(DataFileError, match=r"other\.jsonl:2 gives an empty text"):
        evaluate(path)
    assert not (tmp_path / "out").exists()


def test_the_same_set_twice_is_refused(evaluate: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "other.jsonl", rows(4, 2))
    with pytest.raises(LaplaceLoRAError, match=r"^--ood .*other\.jsonl is given twice; leave one out\.$"):
        evaluate(path, path)
    assert not (tmp_path / "out").exists()


def test_the_evaluated_data_told_from_themselves(evaluate: Any, tmp_path: Path) -> None:
    """Nobody means that, and it is said; the table keeps two headings."""
    path = write_jsonl(tmp_path / "other.jsonl", rows(40, 2, seed=1))
    found = evaluate(path, data=path)
    assert f"40 rows of {path} stand in {path} too: what is evaluated is told from itself" in found.messages
    assert found.text.splitlines().count(f"{path}, n = 40") == 3  # above all, and over both blocks


def test_every_table_says_split_and_n_and_marks_an_own_split(evaluate: Any) -> None:
    data, other = Split(rows(40, 2, seed=1)), Split(rows(20, 2, seed=2), "elsewhere", "validation", own=False)
    found = evaluate(other, data=data, validation=Split(rows(30, 2, seed=3), split="train[80%:]"))
    metrics = found.metrics
    assert metrics["data"] == {**data.provenance(), "rows": 40}
    assert metrics["validation"] == {**data.provenance(), "split": "train[80%:]", "rows": 30}
    assert metrics["ood"]["elsewhere:validation"]["data"] == {**other.provenance(), "rows": 20}
    assert metrics["settings"]["data"] == "made_up:test"
    assert metrics["settings"]["ood"] == ["elsewhere:validation"]
    assert found.text.startswith(f"made_up, test, from memory, n = 40\n{OWN_SPLIT_NOTE}\n")
    assert found.text.endswith(OWN_SPLIT_NOTE)
    for line in ("made_up, test (own split), n = 40", "elsewhere, validation, n = 20"):
        assert line in found.text.splitlines()
    page = (found.out / "report.html").read_text()
    assert "made_up, test (own split)" in page
    assert f"{OWN_SPLIT_NOTE}." in page
    for shown in ("fitted on made_up, test, from memory, n = 40", "elsewhere, validation, from memory, n = 20"):
        assert shown in page
    assert "chosen on made_up, train[80%:], from memory, n = 30" in page


def test_a_published_split_has_no_mark(evaluate: Any) -> None:
    found = evaluate(data=Split(rows(40, 2, seed=1), own=False))
    assert "own split" not in found.text + (found.out / "report.html").read_text()
    assert "ood" not in found.metrics


def test_other_data_of_the_training_are_pointed_out(evaluate: Any, folder: Path) -> None:
    found = evaluate(folder / "train.jsonl")
    assert "24 of 24 rows in" in found.messages
    assert "they are no outside data; give other rows." in found.messages


def test_options_that_are_absent_have_no_probability() -> None:
    two = {"map": Logits(np.array([[3.0, 1.0]])).softmax()}
    four = {"map": Logits(np.array([[3.0, 1.0, 0.0, 2.0]])).softmax()}
    near, far = as_wide(two, four)
    assert near["map"].values.tolist() == [[*two["map"].values[0], 0.0, 0.0]]
    assert far["map"].values.tolist() == four["map"].values.tolist()
