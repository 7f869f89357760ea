"""Bootstrap intervals against scipy, against plain loops, and against how often they cover."""

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.made_up import example, tied_predictions
from laplace_lora.evaluation import bootstrap, compare, metrics, resampled, score, selective
from laplace_lora.evaluation.bootstrap import Interval, percentile_interval

FUNCTIONS = {
    "nll": metrics.nll,
    "brier": metrics.brier,
    "ece": metrics.ece,
    "ece_equal_mass": selective.ece_equal_mass,
    "accuracy": metrics.accuracy,
    "confidence": lambda probabilities, _: probabilities.max(1).mean(),
    "auroc": selective.error_auroc,
    "aurc": selective.aurc,
}


def resampled_rows(n, resamples, seed=0):
    for block in bootstrap.resampling_counts(n, resamples, seed):
        for row in block.astype(int):
            yield np.repeat(np.arange(n), row)


@pytest.mark.parametrize("ties", [False, True])
def test_every_interval_is_that_of_a_plain_loop(ties):
    before, after, labels = example(60, 3)
    if ties:
        before, labels = tied_predictions(60, 3)
        before = 0.98 * before + 0.02 / 3  # no zero probabilities: infinite losses have a test of their own
    result = compare({"map": before, "laplace": after}, labels, resamples=80, rank_resamples=50)
    rows = list(resampled_rows(60, 80))
    for field, function in FUNCTIONS.items():
        kept = rows[:50] if field in ("auroc", "aurc", "ece_equal_mass") else rows
        old = np.array([function(before[pick], labels[pick]) for pick in kept])
        new = np.array([function(after[pick], labels[pick]) for pick in kept])
        for name, values in (("map", old), ("laplace", new)):
            interval = result.intervals[name][field]
            assert interval.estimate == getattr(result.methods[name], field)
            assert interval[1:] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12)
        if field != "confidence":
            interval = result.difference[field]
            assert interval.estimate == pytest.approx(function(after, labels) - function(before, labels), abs=1e-12)
            assert interval[1:] == pytest.approx(np.quantile(new - old, [0.025, 0.975]), abs=1e-12)


def test_kl_is_compared_where_the_truth_is_known():
    before, truth, labels = example(50)
    result = compare({"map": before, "laplace": truth}, labels, truth, resamples=60)
    values = [metrics.kl(truth[pick], before[pick]) for pick in resampled_rows(50, 60)]
    assert result.intervals["map"]["kl"][1:] == pytest.approx(np.quantile(values, [0.025, 0.975]))
    assert result.difference["kl"][1:] == pytest.approx(-np.quantile(values, [0.975, 0.025]))
    assert "kl" not in compare({"map": before}, labels, resamples=10).intervals["map"]


def test_a_mean_difference_is_scipys():
    before, after, labels = example(150)
    ours = compare({"map": before, "laplace": after}, labels).difference["nll"]
    losses = metrics.log_losses(after, labels) - metrics.log_losses(before, labels)
    theirs = stats.bootstrap(
        (losses,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.estimate == pytest.approx(losses.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_pairing_is_used():
    # The same order under both: whatever is drawn, accuracy, error detection and AURC do not differ.
    before, truth, labels = example(100)
    result = compare({"map": before, "laplace": truth}, labels, resamples=200)
    for field in ("accuracy", "auroc", "aurc"):
        assert result.difference[field] == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
        assert result.intervals["map"][field].low < result.intervals["map"][field].high


def test_coverage():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        right = rng.random(80) < 0.7
        probabilities = np.where(right[:, None], [0.8, 0.2], [0.2, 0.8])
        interval = compare({"map": probabilities}, np.zeros(80, int), resamples=500).intervals["map"]["accuracy"]
        covered += interval.low <= 0.7 <= interval.high
    # Binomial(200, 0.95) lies between 181 and 198 with probability 0.998; percentile intervals cover a little less.
    assert 179 <= covered <= 199


def test_the_seed_fixes_the_interval_and_blocks_do_not_change_it(monkeypatch):
    before, after, labels = example(40, 3)

    def run(seed):
        return compare({"map": before, "laplace": after}, labels, resamples=90, rank_resamples=33, seed=seed).to_dict()

    first = run(7)
    assert first == run(7)
    assert first != run(8)
    monkeypatch.setattr(bootstrap, "_BLOCK_ELEMENTS", 400)
    monkeypatch.setattr(resampled, "_RANK_BLOCK_ELEMENTS", 120)
    again = run(7)
    for name in ("map", "laplace"):
        for field, ends in first["methods"][name]["intervals"].items():
            # Matrix products of other sizes may round otherwise.
            assert again["methods"][name]["intervals"][field] == pytest.approx(ends, rel=1e-12)


def test_resamples_have_the_size_of_the_data():
    for counts in bootstrap.resampling_counts(17, 25, seed=0):
        assert (counts.sum(1) == 17).all()


def test_an_infinite_loss_has_no_interval_and_leaves_the_others_alone():
    before, after, labels = example(300)
    before = before.copy()
    before[3] = np.eye(2)[1 - labels[3]]
    result = compare({"map": before, "laplace": after, "other": before}, labels, resamples=100)
    assert result.methods["map"].impossible == 1
    assert result.methods["map"].nll == math.inf
    assert result.intervals["map"]["nll"] == Interval(math.inf, None, None)
    assert result.difference["nll"] == Interval(-math.inf, None, None)
    assert not result.difference["nll"].below_zero
    assert result.differences["other"]["nll"] == Interval(None, None, None)
    assert result.difference["brier"].below_zero
    assert result.intervals["laplace"]["nll"].low is not None
    document = result.to_dict()
    assert document["methods"]["map"]["nll"] is None
    assert document["methods"]["map"]["impossible"] == 1
    assert document["difference"]["nll"] == {"estimate": None, "low": None, "high": None}


def test_an_undefined_figure_has_no_interval():
    probabilities = np.tile([0.8, 0.2], (40, 1))
    result = compare({"map": probabilities}, np.zeros(40, int), resamples=50)
    assert result.methods["map"].auroc is None
    assert result.intervals["map"]["auroc"] == Interval(None, None, None)
    # With one wrong prediction a third of the resamples hold none: an interval from the others would be a selection.
    one = compare({"map": probabilities}, np.eye(40, dtype=int)[0], resamples=50)
    assert one.intervals["map"]["auroc"] == Interval(0.5, None, None)
    assert one.intervals["map"]["aurc"].low is not None


def test_a_few_undefined_resamples_are_left_out():
    values = np.arange(1000.0)
    values[:5] = np.nan
    interval = percentile_interval(500.0, values)
    assert interval[1:] == pytest.approx(np.quantile(values[5:], [0.025, 0.975]))
    values[:11] = np.nan
    assert percentile_interval(500.0, values) == Interval(500.0, None, None)


def test_ten_thousand_resamples_unless_told_otherwise(monkeypatch):
    seen = []
    original = bootstrap.resampling_counts
    monkeypatch.setattr(
        bootstrap,
        "resampling_counts",
        lambda n, resamples, seed: seen.append(resamples) or original(n, resamples, seed),
    )
    before, _, labels = example(20)
    figures = resampled.resampled_figures({"map": before}, labels)
    assert seen == [10_000]
    assert {field: len(values) for field, values in figures["map"].items()} == {
        **dict.fromkeys(("nll", "brier", "accuracy", "confidence", "ece"), 10_000),
        **dict.fromkeys(("auroc", "aurc", "ece_equal_mass"), 2_000),
    }
    assert score(before, labels).nll == pytest.approx(figures["map"]["nll"].mean(), rel=0.02)
