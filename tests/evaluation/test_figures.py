"""Figures that are not about classes: means over examples, their intervals, intervals that hold."""

import math

import numpy as np
import pytest
from scipy import stats

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import DataSet
from laplace_lora.evaluation.figures import Measure, figures_table, measure, written
from laplace_lora.evaluation.plain_report import plain_report
from laplace_lora.evaluation.regression import DESCRIPTIONS, coverage_curve, gaussian_measures, half_width
from laplace_lora.evaluation.side_by_side import OWN_SPLIT_NOTE


def _draws(count: int = 400, inflate: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mean, variance = rng.normal(size=count), rng.uniform(0.5, 2.0, size=count)
    return mean, variance * inflate, rng.normal(mean, np.sqrt(variance))


def test_gaussian_figures_are_those_of_scipy() -> None:
    mean, variance, targets = _draws()
    found = measure({"map": gaussian_measures(mean, variance, targets)}).methods["map"]
    density = stats.norm(mean, np.sqrt(variance))
    assert found["nll"].estimate == pytest.approx(-density.logpdf(targets).mean())
    assert found["rmse"].estimate == pytest.approx(math.sqrt(((mean - targets) ** 2).mean()))
    for level in (0.5, 0.9, 0.95):
        low, high = density.interval(level)
        assert found[f"coverage_{round(100 * level)}"].estimate == ((low <= targets) & (targets <= high)).mean()
        assert half_width(level) == pytest.approx(stats.norm.ppf(0.5 + level / 2))


def test_sound_intervals_hold_and_wide_ones_hold_too_often() -> None:
    nominal, observed = coverage_curve(*_draws(20_000))
    assert np.abs(nominal - observed).max() < 0.02
    assert (coverage_curve(*_draws(20_000, inflate=4.0))[1] > nominal).all()


def test_a_mean_over_tokens_weighs_texts_by_their_length() -> None:
    lengths = np.array([1.0, 9.0])
    figures = measure({"map": {"nll": Measure(np.array([1.0, 18.0]), lengths)}})
    assert figures.methods["map"]["nll"].estimate == pytest.approx(1.9)
    assert figures.n == 2


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(1)
    hard, ones = rng.normal(size=200) * 10, np.ones(200)
    figures = measure({"map": {"nll": Measure(hard, ones)}, "laplace": {"nll": Measure(hard - 0.1, ones)}})
    difference = figures.differences["laplace"]["nll"]
    assert difference.low == pytest.approx(-0.1)
    assert difference.high == pytest.approx(-0.1)
    assert figures.methods["map"]["nll"].high - figures.methods["map"]["nll"].low > 1.0  # type: ignore[operator]
    assert figures.to_dict()["differences"]["laplace"]["nll"]["estimate"] == pytest.approx(-0.1)


def test_nothing_to_measure() -> None:
    with pytest.raises(LaplaceLoRAError, match="of no examples"):
        measure({"map": {"nll": Measure(np.zeros(0), np.zeros(0))}})


def test_table_and_page() -> None:
    mean, variance, targets = _draws(60)
    figures = measure({name: gaussian_measures(mean, variance, targets) for name in ("map", "laplace")})
    assert "negative log-likelihood (nats)" in figures_table(figures, DESCRIPTIONS)
    page = plain_report(
        figures,
        DESCRIPTIONS,
        title="<b>Intervals</b>",
        subtitle="a & b",
        curves={"map": coverage_curve(mean, variance, targets)},
        caption="coverage",
        details=[("Data", "<script>")],
    )
    assert "<script>" not in page
    assert "&lt;b&gt;Intervals" in page
    assert "$" not in page.split("</style>")[1]
    assert page.count("<svg") == page.count("</svg>") == 1


def test_numbers_are_written_short() -> None:
    figures = measure({"map": {"a": Measure(np.array([0.00012345, 0.00012345]), np.ones(2)), "b": 12.3456}})
    assert written(figures.methods["map"]["a"]).startswith("0.000123 [")
    assert written(figures.methods["map"]["b"]) == "12.346"
    assert written(None) == ""


def test_tables_say_split_and_n_and_mark_an_own_split() -> None:
    figures = measure({"map": gaussian_measures(*_draws(50))})
    assert figures_table(figures, DESCRIPTIONS).startswith("n = 50 ")
    own, published = DataSet("made_up, test", 50, own_split=True), DataSet("<b>, test", 50)
    marked = plain_report(figures, DESCRIPTIONS, title="t", subtitle="s", data=own)
    assert "made_up, test (own split): 50 examples" in marked
    assert marked.count(OWN_SPLIT_NOTE) == 1
    plain = plain_report(figures, DESCRIPTIONS, title="t", subtitle="s", data=published)
    assert "&lt;b&gt;, test: 50 examples" in plain
    assert "own split" not in plain
