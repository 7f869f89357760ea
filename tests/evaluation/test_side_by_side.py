"""The table of data sets and methods, in all three forms, from comparisons and from what was saved of them."""

import json
import re
from typing import Any

import numpy as np
import pytest

from evaluation.made_up import example, sharpened
from evaluation.test_report import Links
from laplace_lora.evaluation import (
    Comparison,
    DataSet,
    Line,
    OutOfDistribution,
    compare,
    html_side_by_side,
    lines_of,
    markdown_table,
    ood_scores,
    terminal_side_by_side,
)
from laplace_lora.evaluation.side_by_side import OWN_SPLIT_NOTE

FIGURES = ("accuracy", "nll", "ece", "ece_floor", "brier", "auroc", "aurc")
FORMS = (terminal_side_by_side, markdown_table, html_side_by_side)


def compared(n: int = 300) -> Comparison:
    before, truth, labels = example(n)
    return compare({"map": before, "temperature": sharpened(truth, 1.5), "laplace": truth}, labels, resamples=50)


def detected(comparison: Comparison) -> OutOfDistribution:
    values = {name: np.array([[0.9, 0.1], [0.6, 0.4]]) for name in comparison.methods}
    return ood_scores(values, {name: rows[::-1] for name, rows in values.items()}, resamples=5)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_line_per_data_set_and_method_with_every_figure() -> None:
    inside, outside = compared(), compared(90)
    sets = [(DataSet("a.jsonl", 300), inside), (DataSet.of({"task": "arc", "split": "test"}, 90), outside)]
    lines = [line for data, comparison in sets for line in lines_of(data, comparison)]
    head, _, *rows = markdown_table(lines, ("set", "n", "method", *FIGURES, "difference")).splitlines()
    assert cells(head)[:4] == ["data", "n", "method", "accuracy"]
    assert len(rows) == 6
    for row, (index, (name, scores)) in zip(
        rows, [(i, pair) for i, (_, c) in enumerate(sets) for pair in c.methods.items()], strict=True
    ):
        found = cells(row)
        first = name == "map"
        assert found[:2] == ([["a.jsonl", "300"], ["arc, test", "90"]][index] if first else ["", ""])
        assert found[2] == {"map": "MAP", "temperature": "Temperature", "laplace": "Laplace"}[name]
        assert found[3:10] == [f"{getattr(scores, figure):.3f}" for figure in FIGURES]
        if first:
            assert found[10] == ""
        else:
            low_high = sets[index][1].differences[name]["nll"]
            assert found[10] == f"{low_high.estimate:+.3f} [{low_high.low:+.3f}, {low_high.high:+.3f}]"


@pytest.mark.parametrize("form", FORMS)
def test_what_was_saved_gives_the_same_table(form: Any) -> None:
    comparison = compared()
    saved = json.loads(json.dumps(comparison.to_dict()))
    data = DataSet("a", 300)
    assert form(lines_of(data, saved)) == form(lines_of(data, comparison))


@pytest.mark.parametrize("form", FORMS)
def test_split_and_n_are_shown_and_an_own_split_is_marked(form: Any) -> None:
    comparison = compared(60)
    where = {"task": "boolq", "split": "test", "own_split": True, "source": "hub", "rows": 60}
    published = {**where, "task": "arc", "own_split": False}
    marked = form(lines_of(DataSet.of(where), comparison))
    assert "boolq, test (own split)" in marked
    assert "60" in marked
    assert marked.count(OWN_SPLIT_NOTE) == 1
    plain = form(lines_of(DataSet.of(published), comparison))
    assert "arc, test" in plain
    assert "own split" not in plain
    both = form([*lines_of(DataSet.of(published), comparison), *lines_of(DataSet.of(where), comparison)])
    assert both.count(OWN_SPLIT_NOTE) == 1


def test_a_file_is_called_by_its_path() -> None:
    assert DataSet.of({"file": "/a/b.csv", "rows": 3}) == DataSet("/a/b.csv", 3, False)
    assert DataSet.of({"task": "sst2", "split": "train[:80%]", "own_split": True}, 9).title == (
        "sst2, train[:80%] (own split)"
    )


def test_without_labels_there_is_only_detection() -> None:
    comparison = compared()
    detection = detected(comparison)
    lines = lines_of(DataSet("other", 2), None, detection=detection)
    assert [line.method for line in lines] == ["MAP", "Temperature", "Laplace"]
    for line, name in zip(lines, comparison.methods, strict=True):
        assert line.figures == {"detection": detection.methods[name]["entropy"].auroc.estimate}
    assert cells(markdown_table(lines).splitlines()[0]) == ["data", "n", "method", "told apart (AUROC)"]
    both = [*lines_of(DataSet("a", 300), comparison), *lines]
    assert cells(markdown_table(both).splitlines()[-1])[3:-1] == [""] * 7
    text = terminal_side_by_side(both)
    assert "apart: AUROC of telling these data" in text
    assert max(map(len, text.splitlines())) <= 88


def test_infinite_and_undefined_figures() -> None:
    sure = np.tile([1.0, 0.0], (40, 1))
    comparison = compare({"map": sure}, [1] + [0] * 39, resamples=5).to_dict()
    assert comparison["methods"]["map"]["nll"] is None
    comparison["methods"]["map"]["auroc"] = None
    lines = lines_of(DataSet("information.csv", 40), comparison)
    assert "| information.csv | 40 | MAP | 0.975 | ∞ |" in markdown_table(lines)
    assert "n/a" in markdown_table(lines)
    assert re.search(r"0\.975 +inf ", terminal_side_by_side(lines))
    page = html_side_by_side(lines)
    assert "&infin;" in page
    assert "information.csv" in page


def test_the_callers_own_columns() -> None:
    data = DataSet("a", 300)
    lines = [
        line
        for seed in (0, 1)
        for line in lines_of(data, compared(), methods=["map", "laplace"], more={"seed": str(seed), "why": ""})
    ]
    head, _, *rows = markdown_table(lines, ("seed", "set", "method", "nll", "rmse", "why")).splitlines()
    assert cells(head) == ["seed", "data", "method", "NLL", "why"]  # no line has an RMSE
    assert [cells(row)[:3] for row in rows] == [
        ["0", "a", "MAP"],
        ["", "", "Laplace"],
        ["1", "a", "MAP"],
        ["", "", "Laplace"],
    ]


def test_names_from_outside_are_escaped() -> None:
    evil = "<img src=x onerror=alert(1)> | b"
    line = Line(DataSet(evil, 1), evil, {"nll": 1.0}, more={evil: evil})
    page = html_side_by_side([line], ("set", "n", "method", "nll", evil))
    reader = Links()
    reader.feed(page)
    assert (reader.fetched, reader.scripts, reader.open) == ([], 0, [])
    assert "<img" not in page
    row = markdown_table([line], ("set", "method", "nll")).splitlines()[-1]
    assert row.count("|") - row.count("\\|") == 4


def test_the_terminal_stays_narrow() -> None:
    comparison = compared(40)
    name = "a method whose name goes on for a good while"
    before, _, labels = example(40)
    comparison = compare({name: before}, labels, reference=name, resamples=5)
    lines = lines_of(DataSet("a", 40), comparison, detection=detected(comparison))
    assert max(map(len, terminal_side_by_side(lines).splitlines())) <= 88
