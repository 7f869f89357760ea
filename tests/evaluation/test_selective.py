"""What depends on the order by confidence, against scikit-learn and plain loops, with ties and without."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as sk

from evaluation.made_up import example, tied_predictions
from laplace_lora.evaluation import metrics, selective
from laplace_lora.evaluation.bootstrap import resampling_counts
from laplace_lora.evaluation.ranking import groups, rank

CASES = {
    "no ties": example(120, 3)[1:],
    "two classes": example(61, 2)[1:],
    "ties": tied_predictions(),
    "all tied": (np.full((30, 3), [0.6, 0.2, 0.2]), np.arange(30) % 3),
    "fewer examples than bins": tied_predictions(n=7),
    "one example": (np.array([[0.3, 0.7]]), np.array([1])),
    "float32": (example(80, 4)[0].astype(np.float32), example(80, 4)[2]),
}
cases = pytest.mark.parametrize(("probabilities", "labels"), CASES.values(), ids=CASES.keys())


def outcomes(probabilities, labels):
    values = np.asarray(probabilities, dtype=np.float64)
    return values.max(1), (values.argmax(1) != labels).astype(float)


def expected_errors(probabilities, labels):
    """Expected errors among the k surest, k = 1 .. N: a tie that is cut counts with its mean, example by example."""
    confidence, wrong = outcomes(probabilities, labels)
    order = sorted(range(len(wrong)), key=lambda i: -confidence[i])
    errors, total = [], 0.0
    for i in order:
        tied = [j for j in order if confidence[j] == confidence[i]]
        total += sum(wrong[j] for j in tied) / len(tied)
        errors.append(total)
    return errors


def equal_mass_by_loop(probabilities, labels, bins):
    """Hand every example out to the bins in shares: a group of n tied examples is spread evenly over its n ranks."""
    confidence, wrong = outcomes(probabilities, labels)
    n = len(wrong)
    gaps = [0.0] * bins
    for level in sorted(set(confidence)):
        tied = [i for i in range(n) if confidence[i] == level]
        start = sum(1 for c in confidence if c < level)
        gap = sum((1.0 - wrong[i]) - confidence[i] for i in tied)
        for b in range(bins):
            low, high = b * n / bins, (b + 1) * n / bins
            shared = max(0.0, min(high, start + len(tied)) - max(low, start))
            gaps[b] += gap * shared / len(tied)
    return sum(abs(gap) for gap in gaps) / n


@cases
def test_error_auroc_is_scikit_learns_and_counts_pairs(probabilities, labels):
    confidence, wrong = outcomes(probabilities, labels)
    value = selective.error_auroc(probabilities, labels)
    if wrong.min() == wrong.max():
        assert value is None
        return
    assert value == pytest.approx(sk.roc_auc_score(1 - wrong, confidence), abs=1e-12)
    pairs = [0.5 * (a == b) + (a > b) for a, b in itertools.product(confidence[wrong == 0], confidence[wrong == 1])]
    assert value == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_error_auroc_is_undefined_where_all_are_right_or_all_wrong(label):
    assert selective.error_auroc([[0.9, 0.1], [0.6, 0.4]], [label, label]) is None


@cases
def test_aurc_is_the_mean_of_the_loops_risks(probabilities, labels):
    errors = expected_errors(probabilities, labels)
    risks = [error / (k + 1) for k, error in enumerate(errors)]
    assert selective.aurc(probabilities, labels) == pytest.approx(np.mean(risks), abs=1e-12)
    curve = selective.risk_coverage(probabilities, labels)
    np.testing.assert_allclose(curve.risk, risks, atol=1e-12)
    np.testing.assert_allclose(curve.coverage, np.arange(1, len(labels) + 1) / len(labels))
    assert curve.risk[-1] == pytest.approx(1.0 - metrics.accuracy(probabilities, labels))


def test_aurc_within_ties_is_the_expectation_over_orders():
    # Every order of four tied rows, two of them wrong, behind one sure and right row.
    probabilities = np.array([[0.9, 0.1]] + [[0.6, 0.4]] * 4)
    labels = np.array([0, 0, 1, 1, 0])
    areas = []
    for order in itertools.permutations([0, 1, 1, 0]):
        errors = np.cumsum([0, *order])
        areas.append(np.mean(errors / np.arange(1, 6)))
    assert selective.aurc(probabilities, labels) == pytest.approx(np.mean(areas), abs=1e-12)


@cases
@pytest.mark.parametrize("bins", [1, 4, 15])
def test_equal_mass_ece_is_the_loop(probabilities, labels, bins):
    value = selective.ece_equal_mass(probabilities, labels, bins)
    assert value == pytest.approx(equal_mass_by_loop(probabilities, labels, bins), abs=1e-12)


def test_equal_mass_ece_without_ties_splits_the_sorted_rows():
    _, probabilities, labels = example(150, 3)
    confidence, wrong = outcomes(probabilities, labels)
    parts = np.split(np.argsort(confidence), 15)
    expected = sum(abs((1 - wrong[part] - confidence[part]).sum()) for part in parts) / 150
    assert selective.ece_equal_mass(probabilities, labels) == pytest.approx(expected, abs=1e-12)


@cases
def test_the_order_of_the_rows_does_not_matter(probabilities, labels):
    order = np.random.default_rng(1).permutation(len(labels))
    for function in (selective.error_auroc, selective.aurc, selective.ece_equal_mass):
        assert function(probabilities[order], labels[order]) == pytest.approx(
            function(probabilities, labels), abs=1e-12
        )


@cases
def test_a_resample_by_counts_is_the_resampled_data(probabilities, labels):
    counts = np.concatenate(list(resampling_counts(len(labels), 40, seed=3)))
    counted = groups(rank(probabilities, labels), counts)
    for of, function in (
        (selective.auroc_of, selective.error_auroc),
        (selective.aurc_of, selective.aurc),
        (selective.equal_mass_ece_of, selective.ece_equal_mass),
    ):
        for value, row in zip(of(counted), counts.astype(int), strict=True):
            pick = np.repeat(np.arange(len(labels)), row)
            expected = function(probabilities[pick], labels[pick])
            if expected is None:
                assert np.isnan(value)
            else:
                assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_the_floor_is_the_mean_error_of_a_calibrated_model(ties, monkeypatch):
    probabilities = tied_predictions(150, 2)[0] if ties else example(150, 2)[1]
    rng = np.random.default_rng(5)
    simulated = [
        selective.ece_equal_mass(probabilities, (rng.random(150) < probabilities[:, 1]).astype(int)) for _ in range(400)
    ]
    error = 4 * np.std(simulated) / np.sqrt(400)
    floor = selective.ece_equal_mass_floor(probabilities)
    assert floor == pytest.approx(np.mean(simulated), abs=error)
    monkeypatch.setattr(selective, "_BLOCK_ELEMENTS", 700)
    assert selective.ece_equal_mass_floor(probabilities) == pytest.approx(floor, rel=1e-12)


def test_perfect_and_useless_order():
    # Right ones surest: no risk until the wrong ones come, whose errors are then all that is left.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    assert selective.error_auroc(probabilities, [0, 0, 1, 1]) == 1.0
    assert selective.error_auroc(probabilities, [1, 1, 0, 0]) == 0.0
    assert selective.aurc(probabilities, [0, 0, 1, 1]) == pytest.approx((1 / 3 + 2 / 4) / 4)
    assert selective.aurc(probabilities, [0, 0, 0, 0]) == 0.0
    assert selective.aurc(probabilities, [1, 1, 1, 1]) == 1.0
