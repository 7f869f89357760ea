"""Bootstrap intervals against scipy and against how often they cover."""

import numpy as np
import pytest
from scipy import stats

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import bootstrap, metrics


def test_mean_difference_is_scipys():
    rng = np.random.default_rng(0)
    after, before = rng.gamma(1.0, size=150), rng.gamma(1.2, size=150)
    ours = bootstrap.mean_difference(after, before)
    theirs = stats.bootstrap(
        (after - before,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.estimate == pytest.approx((after - before).mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.04 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.04 * width)


def test_pairing_is_used():
    # Two methods that differ by a constant have no spread at all, however far the scores scatter.
    before = np.random.default_rng(0).normal(size=100) * 50
    interval = bootstrap.mean_difference(before - 0.25, before)
    assert interval.low == pytest.approx(-0.25)
    assert interval.high == pytest.approx(-0.25)
    assert interval.below_zero
    assert not interval.above_zero


def test_coverage():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        interval = bootstrap.mean_difference(rng.normal(0.3, 1.0, 80), rng.normal(0.0, 1.0, 80), resamples=500)
        covered += interval.low <= 0.3 <= interval.high
    # Binomial(200, 0.95) lies between 181 and 198 with probability 0.998.
    assert 179 <= covered <= 199


def test_the_seed_fixes_the_interval_and_blocks_do_not_change_it(monkeypatch):
    rng = np.random.default_rng(0)
    after, before = rng.normal(size=30), rng.normal(size=30)
    first = bootstrap.mean_difference(after, before, resamples=400, seed=7)
    assert first == bootstrap.mean_difference(after, before, resamples=400, seed=7)
    assert first != bootstrap.mean_difference(after, before, resamples=400, seed=8)
    monkeypatch.setattr(bootstrap, "_BLOCK_ELEMENTS", 100)
    assert first == bootstrap.mean_difference(after, before, resamples=400, seed=7)


def test_ece_difference_is_that_of_resampled_data(monkeypatch):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 60)
    after, before = rng.dirichlet([2, 2], 60), rng.dirichlet([0.5, 0.5], 60)
    seen = []
    counts = list(bootstrap._resampling_counts(60, 50, seed=0))
    for row in np.concatenate(counts).astype(int):
        pick = np.repeat(np.arange(60), row)
        seen.append(metrics.ece(after[pick], labels[pick]) - metrics.ece(before[pick], labels[pick]))
    interval = bootstrap.ece_difference(
        metrics.bin_gaps(after, labels), metrics.bin_gaps(before, labels), resamples=50, seed=0
    )
    assert interval.estimate == pytest.approx(metrics.ece(after, labels) - metrics.ece(before, labels))
    assert interval.low == pytest.approx(np.quantile(seen, 0.025))
    assert interval.high == pytest.approx(np.quantile(seen, 0.975))


def test_resamples_have_the_size_of_the_data():
    for counts in bootstrap._resampling_counts(17, 25, seed=0):
        assert (counts.sum(1) == 17).all()


@pytest.mark.parametrize(
    ("after", "before", "message"),
    [([1.0], [1.0, 2.0], "same examples"), ([], [], "same examples"), ([np.inf], [1.0], "not finite")],
)
def test_refusals(after, before, message):
    with pytest.raises(LaplaceLoRAError, match=message):
        bootstrap.mean_difference(after, before)
