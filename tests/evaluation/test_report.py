"""The report, the tables, the picture and the verdict."""

import builtins
import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from laplace_lora.errors import LaplaceLoRAError, MissingExtraError
from laplace_lora.evaluation import Predictions, compare, score, terminal_table, verdict, write_picture, write_report
from laplace_lora.evaluation.bootstrap import Interval
from laplace_lora.evaluation.examples import confidently_wrong, most_uncertain
from laplace_lora.evaluation.report import render
from laplace_lora.evaluation.tables import rows

TEXTS = ["<script>alert('x')</script> & \"friends\"", "fine", "so-so", "dreadful", "great", "odd"]


def sharpened(probabilities, power):
    values = probabilities**power
    return values / values.sum(1, keepdims=True)


def example(n=300, classes=2, seed=0):
    """Truth is calibrated; MAP is the truth, sharpened."""
    rng = np.random.default_rng(seed)
    truth = rng.dirichlet(np.full(classes, 1.5), n)
    labels = np.array([rng.choice(classes, p=row) for row in truth])
    return sharpened(truth, 6.0), truth, labels


def predictions(n=6, **changes):
    before, after, labels = example(n)
    fields = {
        "labels": labels,
        "before": before,
        "after": after,
        "label_names": ("negative", "positive"),
        "texts": TEXTS[:n],
        "truth": after,
        "epistemic": np.linspace(0.0, 0.5, n),
    }
    return Predictions(**{**fields, **changes})


class Links(HTMLParser):
    """Collects everything that a browser would fetch or run, and checks that tags are closed."""

    def __init__(self):
        super().__init__()
        self.fetched, self.scripts, self.open = [], 0, []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.fetched += [values[name] for name in ("src", "href") if name in values]
        self.scripts += tag == "script"
        if tag not in {"meta", "line", "rect", "circle", "br", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself_and_escapes_what_it_is_given():
    p = predictions()
    comparison = compare(p.before, p.after, p.labels, p.truth, resamples=100)
    names = ("<b>no</b>", "yes")
    page = render(comparison, dataclasses.replace(p, label_names=names), title="A & B", subtitle="<i>", footer="$x")
    reader = Links()
    reader.feed(page)
    assert reader.fetched == []
    assert reader.scripts == 0
    assert reader.open == []
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;script&gt;alert" in page
    assert "A &amp; B" in page
    assert "$x" in page
    assert "<b>no</b>" not in page
    assert page.count("<svg") == 2


def test_write_report_leaves_one_readable_file(tmp_path):
    p = predictions()
    comparison = compare(p.before, p.after, p.labels, p.truth, resamples=100)
    path = write_report(tmp_path / "new" / "report.html", comparison, p)
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_mode & 0o044 == 0o044
    assert verdict(comparison).split(":")[0] in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_any_number_of_classes_and_no_truth(classes):
    before, after, labels = example(60, classes)
    comparison = compare(before, after, labels, resamples=50)
    page = render(comparison, Predictions(labels, before, after, [f"c{k}" for k in range(classes)]))
    assert "KL divergence" not in page
    assert "Most uncertain" not in page
    assert "nan" not in re.sub(r"<[^>]*>", " ", page).lower().replace("name", "")
    assert 'y="nan"' not in page


def test_unknown_columns_are_left_out():
    p = predictions(truth=None, epistemic=None)
    page = render(compare(p.before, p.after, p.labels, resamples=50), p)
    assert "Most uncertain" in page
    assert "True p" not in page
    assert "Epistemic" not in page


def test_compare_holds_the_scores_of_both():
    before, truth, labels = example()
    comparison = compare(before, truth, labels, truth, resamples=500)
    assert comparison.before == score(before, labels, truth)
    assert comparison.after == score(truth, labels, truth)
    assert comparison.after.kl == 0.0
    for name in ("nll", "brier", "ece", "accuracy", "kl"):
        expected = getattr(comparison.after, name) - getattr(comparison.before, name)
        assert comparison.difference[name].estimate == pytest.approx(expected)
    document = comparison.to_dict()
    assert document["n"] == 300
    assert set(document["methods"]) == {"map", "laplace"}
    assert {"accuracy", "nll", "ece", "brier"} <= set(document["methods"]["map"])
    assert "kl" not in compare(before, truth, labels, resamples=50).to_dict()["methods"]["map"]


def comparison_like(nll, after_ece, before_confidence=0.95):
    """A comparison whose numbers are set by hand."""
    before, truth, labels = example(100)
    base = compare(before, truth, labels, resamples=50)
    return dataclasses.replace(
        base,
        before=dataclasses.replace(base.before, ece=0.2, ece_floor=0.02, accuracy=0.8, confidence=before_confidence),
        after=dataclasses.replace(base.after, ece=after_ece, ece_floor=0.04, accuracy=0.8),
        difference={**base.difference, "nll": nll},
    )


@pytest.mark.parametrize(
    ("nll", "after_ece", "confidence", "start"),
    [
        (Interval(-0.3, -0.4, -0.2), 0.05, 0.95, "Laplace turned an over-confident model into a calibrated one"),
        (Interval(-0.3, -0.4, -0.2), 0.05, 0.60, "Laplace turned an under-confident model into a calibrated one"),
        (Interval(-0.3, -0.4, -0.2), 0.10, 0.95, "Laplace made the probabilities better, though not yet calibrated"),
        (Interval(-0.3, -0.4, -0.2), 0.30, 0.95, "Laplace improved the log loss but not the calibration"),
        (Interval(-0.1, -0.4, 0.2), 0.05, 0.95, "Laplace made no clear difference here"),
        (Interval(0.3, 0.2, 0.4), 0.05, 0.95, "Laplace made the predictions worse here"),
    ],
)
def test_the_verdict_follows_the_numbers(nll, after_ece, confidence, start):
    sentence = verdict(comparison_like(nll, after_ece, confidence))
    assert sentence.startswith(start)
    assert "0.200" in sentence
    assert f"{after_ece:.3f}" in sentence
    assert "accuracy stayed at 80.0 %" in sentence


def test_the_verdict_tells_of_lost_accuracy():
    comparison = comparison_like(Interval(-0.3, -0.4, -0.2), 0.05)
    comparison = dataclasses.replace(comparison, after=dataclasses.replace(comparison.after, accuracy=0.75))
    assert "accuracy went from 80.0 % to 75.0 %" in verdict(comparison)


def test_the_table_calls_better_and_worse_by_the_metrics_own_direction():
    before, truth, labels = example()
    comparison = compare(before, truth, labels, truth, resamples=200)
    worse = Interval(-0.1, -0.2, -0.05)
    comparison = dataclasses.replace(comparison, difference={**comparison.difference, "accuracy": worse})
    outcomes = {row.name.strip(): row.outcome for row in rows(comparison)}
    assert outcomes["Negative log-likelihood"] == "better"
    assert outcomes["Accuracy"] == "worse"
    assert outcomes["its sampling floor"] == ""
    table = terminal_table(comparison)
    assert max(len(line) for line in table.splitlines()) <= 88
    assert f"{comparison.after.nll:.3f}" in table


def test_most_uncertain_and_confidently_wrong():
    after = np.array([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8], [0.3, 0.7]])
    before = np.array([[1.0, 0.0], [0.01, 0.99], [0.1, 0.9], [0.0, 1.0]])
    p = predictions(
        4, labels=np.array([1, 0, 1, 0]), after=after, before=before, truth=None, epistemic=[0.1, 0.4, 0, 0.3]
    )
    assert [shown.text for shown in most_uncertain(p, 2)] == ["fine", "dreadful"]
    by_confidence = dataclasses.replace(p, epistemic=None)
    assert [shown.text for shown in most_uncertain(by_confidence, 2)] == ["fine", "dreadful"]
    wrong = confidently_wrong(p, p.after, 5)
    assert [shown.text for shown in wrong] == [TEXTS[0], "dreadful", "fine"]
    assert (wrong[0].label, wrong[0].predicted, wrong[0].before, wrong[0].after) == ("positive", "negative", 1.0, 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ["one"]}, "texts has 1"),
        ({"label_names": ("a",)}, "label_names has 1"),
        ({"before": np.full((6, 3), 1 / 3)}, "before and after"),
        ({"truth": np.ones((6, 2))}, "truth"),
    ],
)
def test_arrays_that_do_not_belong_together(changes, message):
    with pytest.raises(LaplaceLoRAError, match=message):
        predictions(**changes)


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    p = predictions()
    path = write_picture(tmp_path / "a" / "picture.png", compare(p.before, p.after, p.labels, resamples=50), p)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_missing_matplotlib_names_its_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    p = predictions()
    with pytest.raises(MissingExtraError, match=r"laplace-lora\[plot\]"):
        write_picture(tmp_path / "x.png", compare(p.before, p.after, p.labels, resamples=50), p)
