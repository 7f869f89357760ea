"""The report, the picture, and the examples they show."""

import builtins
import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation.made_up import example, sharpened
from laplace_lora.errors import LaplaceLoRAError, MissingExtraError
from laplace_lora.evaluation import DataSet, Predictions, compare, lines_of, ood_scores, write_picture, write_report
from laplace_lora.evaluation.examples import confidently_wrong, most_uncertain
from laplace_lora.evaluation.report import render
from laplace_lora.evaluation.selective import risk_coverage
from laplace_lora.evaluation.svg import lowest_shown, round_ticks
from laplace_lora.evaluation.svg_curves import histogram, risk_coverage_svg
from laplace_lora.evaluation.verdict import verdict_parts

TEXTS = ["<script>alert('x')</script> & \"friends\"", "fine", "so-so", "dreadful", "great", "odd"]


def predictions(n=6, **changes):
    before, after, labels = example(n)
    fields = {
        "labels": labels,
        "methods": {"map": before, "laplace": after},
        "label_names": ("negative", "positive"),
        "texts": TEXTS[:n],
        "truth": after,
        "epistemic": np.linspace(0.0, 0.5, n),
    }
    return Predictions(**{**fields, **changes})


def compared(p, **settings):
    return compare(p.methods, p.labels, p.truth, **{"resamples": 50, **settings})


class Links(HTMLParser):
    """Collects everything that a browser would fetch or run, and checks that tags are closed."""

    def __init__(self):
        super().__init__()
        self.fetched, self.scripts, self.open, self.unlabelled = [], 0, [], 0

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.fetched += [values[name] for name in ("src", "href", "action", "poster") if name in values]
        self.scripts += tag == "script" or any(name.startswith("on") for name in values)
        self.unlabelled += tag == "svg" and not values.get("aria-label")
        if tag not in {"meta", "br", "link", "img", "input"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(page):
    """Assert what holds for every page, and return its words."""
    reader = Links()
    reader.feed(page)
    assert (reader.fetched, reader.scripts, reader.open, reader.unlabelled) == ([], 0, [], 0)
    assert "url(" not in page
    assert "@import" not in page
    assert '="nan' not in page.lower()
    words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert not re.search(r"\b(nan|None)\b", words)
    assert "$" not in words.replace("$x", "")
    return words


def test_the_page_needs_nothing_but_itself_and_escapes_what_it_is_given():
    evil = "<img src=x onerror=alert(1)>"
    before, truth, labels = example(6)
    methods = {"map": before, evil: truth}
    p = Predictions(labels, methods, ("<b>no</b>", "yes"), TEXTS, truth, np.linspace(0.0, 0.5, 6))
    page = render(
        compared(p),
        p,
        title="A & B",
        subtitle="<i>",
        footer="$x",
        out_of_distribution={evil: ood_scores(methods, methods, resamples=5)},
        data_sets=lines_of(DataSet(evil, 6, own_split=True), compared(p)),
        details=[(evil, evil), ("prior", {"a": 1.5})],
    )
    words = checked(page)
    assert "<img" not in page
    assert "&lt;script&gt;alert" in page
    assert "A &amp; B" in page
    assert "$x" in words
    assert "<b>no</b>" not in page
    # Reliability and histogram for each method, and one risk-coverage drawing for all.
    assert page.count("<svg") == 5


def test_write_report_leaves_one_readable_file(tmp_path):
    p = predictions()
    comparison = compared(p)
    lines = lines_of(DataSet("made_up, test", 6, own_split=True), comparison)
    path = write_report(tmp_path / "new" / "report.html", comparison, p, data_sets=lines, details=[("seconds", 1.5)])
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_mode & 0o044 == 0o044
    page = path.read_text(encoding="utf-8")
    assert verdict_parts(comparison).headline in page
    assert "seconds" in page
    assert "<h3>By data set</h3>" in page
    assert "made_up, test (own split)" in page
    assert "By data set" not in render(comparison, p)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
@pytest.mark.parametrize("classes", [1, 2, 150])
def test_any_number_of_classes_and_methods_and_no_truth(classes, count):
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.full(classes, 0.3), 60)
    labels = np.array([rng.choice(classes, p=row) for row in truth])
    methods = {"map": truth, **{f"m{i}": sharpened(truth, 1.0 + 0.1 * i) for i in range(1, count)}}
    p = Predictions(labels, methods, [f"c{k}" for k in range(classes)])
    page = render(compared(p), p)
    words = checked(page)
    assert "KL divergence" not in words
    assert "Most uncertain" not in words
    assert "Details" not in words
    assert "inputs of another kind" not in words
    assert ("Differences" in words) == (count > 1)
    assert page.count("<svg") == 2 * count + 1
    assert page.count("<polyline") == count


def test_unknown_columns_are_left_out():
    p = predictions(truth=None, epistemic=None)
    words = checked(render(compared(p), p))
    assert "True p" not in words
    assert "Epistemic" not in words
    assert "by the entropy of its probabilities" in words
    p = predictions()
    words = checked(render(compared(p), p))
    assert "True p" in words
    assert "Epistemic" in words
    assert "mutual information" in words


def test_long_and_foreign_texts():
    texts = ["日本語 мир", "w" * 5000, "x" * 400, "مرحبا", "a\nb", ""]
    p = predictions(texts=texts)
    page = render(compared(p), p)
    checked(page)
    assert "日本語 мир" in page
    assert "4,600 more characters" in page
    assert "w" * 401 not in page
    assert "x" * 400 + "</td>" in page


def test_few_examples_infinite_losses_and_undefined_figures_are_said_plainly():
    certain = np.tile([1.0, 0.0], (6, 1))
    p = predictions(methods={"map": certain, "laplace": np.tile([0.7, 0.3], (6, 1))}, labels=np.ones(6, int))
    page = render(compared(p), p)
    words = checked(page)
    assert "6 test examples are too few to judge Laplace." in words
    assert "too few for these intervals to be trusted" in words
    assert "MAP gave 6 of 6 labels probability zero" in words
    assert "&infin;" in page
    assert "n/a" in words
    assert 'class="better"' not in page


def test_the_out_of_distribution_section():
    before, truth, labels = example(50)
    p = Predictions(labels, {"map": before, "laplace": truth}, ("a", "b"))
    result = ood_scores(
        p.methods,
        {"map": before[:20], "laplace": truth[:20]},
        in_mutual_information={"laplace": np.linspace(0, 1, 50)},
        out_mutual_information={"laplace": np.linspace(0, 1, 20)},
        resamples=20,
    )
    words = checked(render(compared(p), p, out_of_distribution={"völkerrecht": result}))
    assert "völkerrecht" in words
    assert "50 test examples against 20 outside ones" in words
    assert f"{result.methods['map']['entropy'].fpr95.estimate:.3f}" in words
    assert words.count("mutual information") == 1


def test_another_comparison_is_refused():
    p = predictions()
    with pytest.raises(LaplaceLoRAError, match="from the same arrays"):
        render(compared(p), dataclasses.replace(p, methods={"map": p.methods["map"]}))
    other = example(7)
    with pytest.raises(LaplaceLoRAError, match="from the same arrays"):
        render(compare({"map": other[0], "laplace": other[1]}, other[2], resamples=10), p)


def test_the_drawn_curve_goes_through_the_figures():
    _, truth, labels = example(60)
    curve = risk_coverage(truth, labels)
    svg = risk_coverage_svg({"x": curve}, {"x": "c0"}, "label")
    (points,) = re.findall(r'points="([^"]*)"', svg)
    places = np.array([[float(v) for v in pair.split(",")] for pair in points.split()])
    assert len(places) == 51  # from the tenth example on
    labels_y = {float(v) / 100: float(y) - 4 for y, v in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+) %', svg)}
    (low, y_low), *_, (high, y_high) = sorted(labels_y.items())
    expected = y_low + (curve.risk[9:] - low) / (high - low) * (y_high - y_low)
    np.testing.assert_allclose(places[:, 1], expected, atol=0.15)
    assert (np.diff(places[:, 0]) > 0).all()


def test_no_errors_at_all_still_make_a_curve():
    svg = risk_coverage_svg({"x": risk_coverage([[0.9, 0.1]] * 3, [0, 0, 0])}, {"x": "c0"}, "label")
    assert "nan" not in svg


@pytest.mark.parametrize("highest", [0.003, 0.01, 0.0999, 0.1, 0.28, 0.3, 0.5, 0.51, 1.0])
def test_ticks_are_round_and_hold_the_data(highest):
    ticks = round_ticks(highest)
    assert ticks[0] == 0.0
    assert ticks[-1] >= highest - 1e-9
    assert ticks[-2] < highest
    assert 3 <= len(ticks) <= 6


def test_the_histogram_counts_everything_once():
    confidence = np.array([0.05, 0.5, 0.51, 1.0, 1.0 + 1e-7, 0.999])
    right, wrong = histogram(confidence, np.array([1.0, 0, 1, 1, 0, 1]))
    assert (right.sum(), wrong.sum()) == (4, 2)
    assert (right[0], wrong[9], right[10], right[19], wrong[19]) == (1, 1, 1, 2, 1)


@pytest.mark.parametrize(("classes", "lowest"), [(1, 0.45), (2, 0.45), (4, 0.2), (150, 0.0)])
def test_the_confidence_axis_begins_below_the_least_confidence(classes, lowest):
    assert lowest_shown(classes) == pytest.approx(lowest)


def test_most_uncertain_and_confidently_wrong():
    after = np.array([[0.9, 0.1], [0.45, 0.55], [0.2, 0.8], [0.3, 0.7]])
    before = np.array([[1.0, 0.0], [0.01, 0.99], [0.1, 0.9], [0.0, 1.0]])
    p = predictions(
        4,
        labels=np.array([1, 0, 1, 0]),
        methods={"map": before, "laplace": after},
        truth=None,
        epistemic=[0.1, 0.4, 0, 0.3],
    )
    assert [shown.text for shown in most_uncertain(p, "laplace", 2)] == ["fine", "dreadful"]
    by_entropy = dataclasses.replace(p, epistemic=None)
    assert [shown.text for shown in most_uncertain(by_entropy, "laplace", 2)] == ["fine", "dreadful"]
    assert [shown.text for shown in most_uncertain(by_entropy, "map", 2)] == ["so-so", "fine"]
    wrong = confidently_wrong(p, "laplace", 5)
    assert [shown.text for shown in wrong] == [TEXTS[0], "dreadful", "fine"]
    assert (wrong[0].label, wrong[0].predicted) == ("positive", "negative")
    assert wrong[0].probabilities == {"map": 1.0, "laplace": 0.9}
    assert [shown.text for shown in confidently_wrong(p, "map", 1)] == [TEXTS[0]]


def test_entropy_and_confidence_may_differ_in_order():
    methods = {"map": np.array([[0.5, 0.5, 0.0], [0.55, 0.23, 0.22]])}
    p = Predictions(np.array([0, 0]), methods, ("a", "b", "c"), ("half and half", "spread out"))
    assert [shown.text for shown in most_uncertain(p, "map", 2)] == ["spread out", "half and half"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ["one"]}, "texts has 1"),
        ({"label_names": ("a",)}, "label_names has 1"),
        ({"epistemic": [0.1]}, "epistemic has 1"),
        ({"methods": {}}, "at least one method"),
        ({"methods": {"map": np.full((6, 2), 0.5), "x": np.full((6, 3), 1 / 3)}}, "x and map"),
        ({"truth": np.ones((6, 2))}, "truth"),
        ({"truth": np.full((6, 3), 1 / 3)}, "truth and map"),
        ({"labels": [0, 1]}, "one label"),
    ],
)
def test_arrays_that_do_not_belong_together(changes, message):
    with pytest.raises(LaplaceLoRAError, match=message):
        predictions(**changes)


def test_lists_are_taken_and_unknown_methods_named():
    p = Predictions([0, 1], {"map": [[0.5, 0.5], [0.1, 0.9]]}, ("a", "b"))
    assert p.probabilities("map").dtype == np.float64
    with pytest.raises(LaplaceLoRAError, match=r"'laplace'.*map"):
        p.probabilities("laplace")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_picture(tmp_path, count):
    pytest.importorskip("matplotlib")
    before, _, labels = example(30)
    p = Predictions(labels, {"map": before, **{f"m{i}": before for i in range(1, count)}}, ("a", "b"))
    path = write_picture(tmp_path / "a" / "picture.png", compared(p), p)
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
        write_picture(tmp_path / "x.png", compared(p), p)
