"""Metrics against plain loops and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import Logits, metrics


def random_predictions(n=400, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.7), size=n)
    return probabilities, rng.integers(0, classes, n)


def ece_by_loop(probabilities, labels, bins):
    """The definition, bin by bin: (lo, hi], with zero in the first."""
    total = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        confidences, hits = [], []
        for row, label in zip(probabilities, labels, strict=True):
            confidence = max(row)
            if low < confidence <= high or (b == 0 and confidence == 0.0):
                confidences.append(confidence)
                hits.append(float(int(np.argmax(row)) == label))
        if hits:
            total += len(hits) / len(labels) * abs(sum(hits) / len(hits) - sum(confidences) / len(confidences))
    return total


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_against_scikit_learn(classes):
    probabilities, labels = random_predictions(classes=classes)
    names = list(range(classes))
    assert metrics.accuracy(probabilities, labels) == sk.accuracy_score(labels, probabilities.argmax(1))
    assert metrics.nll(probabilities, labels) == pytest.approx(sk.log_loss(labels, probabilities, labels=names))
    one_hot = np.eye(classes)[labels]
    assert metrics.brier(probabilities, labels) == pytest.approx(
        classes * sk.mean_squared_error(one_hot, probabilities), rel=1e-12
    )
    if classes == 2:
        assert metrics.brier(probabilities, labels) == pytest.approx(
            2 * sk.brier_score_loss(labels, probabilities[:, 1])
        )


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_the_loop(classes, bins):
    probabilities, labels = random_predictions(classes=classes, seed=classes)
    assert metrics.ece(probabilities, labels, bins) == pytest.approx(ece_by_loop(probabilities, labels, bins))


def test_ece_bins_are_closed_on_the_right():
    # Confidences 0.6, 0.6 and 0.8 with five bins: 0.6 is the right end of its bin, so 0.6 and 0.61 differ in bin.
    probabilities = np.array([[0.6, 0.4], [0.39, 0.61]])
    index = metrics.bin_of(probabilities.max(1), 5)
    assert index.tolist() == [2, 3]


def test_certainty_belongs_to_the_last_bin():
    # A bin of its own for 1.0 (as torchmetrics has it) would give 0.5 * 0.04 + 0.5 * 1.0.
    probabilities = np.array([[0.96, 0.04], [1.0, 0.0]])
    labels = np.array([0, 1])
    assert metrics.bin_of(probabilities.max(1), 15).tolist() == [14, 14]
    assert metrics.ece(probabilities, labels) == pytest.approx(abs(0.5 - 0.98))


def test_bin_gaps_sum_to_the_ece():
    probabilities, labels = random_predictions()
    gaps = metrics.bin_gaps(probabilities, labels)
    assert gaps.shape == (400, 15)
    assert np.abs(gaps.sum(0)).sum() / 400 == pytest.approx(metrics.ece(probabilities, labels))


def test_reliability_holds_the_same_numbers():
    probabilities, labels = random_predictions()
    diagram = metrics.reliability(probabilities, labels)
    full = diagram.counts > 0
    assert diagram.counts.sum() == 400
    assert np.isnan(diagram.accuracy[~full]).all()
    gap = (diagram.counts * np.abs(diagram.accuracy - diagram.confidence))[full].sum() / 400
    assert gap == pytest.approx(metrics.ece(probabilities, labels))
    assert diagram.ece == pytest.approx(ece_by_loop(probabilities, labels, 15))
    hits = (probabilities.argmax(1) == labels).astype(float)
    assert metrics.binned(probabilities.max(1), hits).ece == diagram.ece


def test_the_floor_is_the_mean_ece_of_a_calibrated_model():
    probabilities, _ = random_predictions(n=300)
    rng = np.random.default_rng(5)
    simulated = []
    for _ in range(400):
        # Labels drawn from the model's own probabilities: what "perfectly calibrated" means.
        labels = np.array([rng.choice(3, p=row) for row in probabilities])
        simulated.append(metrics.ece(probabilities, labels))
    error = 4 * np.std(simulated) / math.sqrt(400)
    assert metrics.ece_floor(probabilities) == pytest.approx(np.mean(simulated), abs=error)


def test_the_floor_shrinks_with_the_square_root_of_the_data():
    probabilities, _ = random_predictions(n=200)
    ratio = metrics.ece_floor(probabilities) / metrics.ece_floor(np.tile(probabilities, (16, 1)))
    assert ratio == pytest.approx(4.0, rel=0.1)


def test_the_floor_does_not_depend_on_the_block_size(monkeypatch):
    probabilities, _ = random_predictions(n=50)
    whole = metrics.ece_floor(probabilities)
    monkeypatch.setattr(metrics, "_BLOCK_ELEMENTS", 700)
    assert metrics.ece_floor(probabilities) == whole


def test_the_band_covers_as_often_as_it_says():
    probabilities, _ = random_predictions(n=600, classes=2)
    low, high = metrics.calibrated_band(probabilities, level=0.9)
    rng = np.random.default_rng(3)
    inside, total = 0, 0
    for _ in range(200):
        labels = (rng.random(600) < probabilities[:, 1]).astype(int)
        diagram = metrics.reliability(probabilities, labels)
        full = diagram.counts > 0
        inside += int(((diagram.accuracy >= low) & (diagram.accuracy <= high))[full].sum())
        total += int(full.sum())
    # Counts are whole numbers, so the band covers at least its level.
    assert 0.89 < inside / total < 0.97


def test_kl_by_loop_and_its_zero():
    truth, _ = random_predictions(n=20, seed=1)
    model, _ = random_predictions(n=20, seed=2)
    truth[0] = [1.0, 0.0, 0.0]
    expected = [
        sum(p * math.log(p / q) for p, q in zip(row, other, strict=True) if p > 0)
        for row, other in zip(truth, model, strict=True)
    ]
    np.testing.assert_allclose(metrics.kl_divergences(truth, model), expected, rtol=1e-12)
    assert metrics.kl(truth, model) == pytest.approx(np.mean(expected))
    assert metrics.kl(truth, truth) == 0.0
    assert metrics.kl([[0.5, 0.5]], [[1.0, 0.0]]) == math.inf


def test_an_impossible_label_costs_infinity():
    assert metrics.nll([[1.0, 0.0]], [1]) == math.inf


def test_softmax():
    logits = np.array([[1000.0, 1000.0, -1000.0], [0.0, math.log(3.0), -math.inf]])
    np.testing.assert_allclose(metrics.softmax(Logits(logits)).values, [[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]], atol=1e-12)


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        ([[0.5, 0.5], [2.0, -1.0]], r"row 1 .* pass Logits\(array\)\.softmax\(\)\.$"),
        ([[0.2, 0.2]], "row 0"),
        ([[math.nan, 1.0]], "row 0"),
        ([0.5, 0.5], "shape"),
        (np.zeros((0, 2)), "non-empty"),
    ],
)
def test_refuses_what_is_no_probability(probabilities, message):
    with pytest.raises(LaplaceLoRAError, match=message):
        metrics.nll(probabilities, [0] * len(probabilities))


@pytest.mark.parametrize(
    ("labels", "message"), [([0], "one label"), ([0, 2], "0 .. 1"), ([0, -1], "0 .. 1"), ([0.0, 1.0], "integers")]
)
def test_refuses_labels_that_do_not_fit(labels, message):
    with pytest.raises(LaplaceLoRAError, match=message):
        metrics.accuracy([[0.5, 0.5], [0.2, 0.8]], labels)


def test_kl_refuses_other_shapes():
    with pytest.raises(LaplaceLoRAError, match="shape"):
        metrics.kl([[0.5, 0.5]], [[0.5, 0.3, 0.2]])


def test_float32_and_half_precision_rows_are_accepted():
    rows = metrics.softmax(Logits(np.random.default_rng(0).normal(size=(50, 5)))).values
    assert metrics.accuracy(rows.astype(np.float32), rows.argmax(1)) == 1.0
    assert metrics.accuracy(rows.astype(np.float16), rows.argmax(1)) > 0.9


def test_models_on_the_same_examples_share_their_luck() -> None:
    """Three that agree are worth one; independent rows would narrow the band by the root of three."""
    rng = np.random.default_rng(5)
    one = rng.dirichlet((1.0, 1.0, 1.0), size=120)
    three = np.tile(one, (3, 1))
    assert metrics.ece_floor(three, models=3) == pytest.approx(metrics.ece_floor(one), rel=1e-12)
    for band, expected in zip(metrics.calibrated_band(three, models=3), metrics.calibrated_band(one), strict=True):
        np.testing.assert_allclose(band, expected, rtol=1e-12)
    assert metrics.ece_floor(three) < 0.7 * metrics.ece_floor(one)
    # Each model by itself stays calibrated: the expected number of right answers is the sum of the confidences.
    other = rng.dirichlet((1.0, 1.0, 1.0), size=120)
    both = np.concatenate([one, other])
    hits, promised, _ = metrics._calibrated_hits(both, 15, 4000, 0, 2)
    np.testing.assert_allclose(hits.mean(axis=0), promised, atol=0.25)
