"""Detection of outside inputs against scikit-learn and a plain-loop bootstrap."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from evaluation.made_up import tied_predictions
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import bootstrap, metrics, ood, ood_scores

RNG = np.random.default_rng(0)
CASES = {
    "no ties": (RNG.dirichlet([0.4] * 3, 130), RNG.dirichlet([2.0] * 3, 70)),
    "ties": (tied_predictions(120)[0], tied_predictions(45, levels=4, seed=1)[0]),
    "twenty": (RNG.dirichlet([0.4] * 3, 20), RNG.dirichlet([2.0] * 3, 33)),
    "all alike": (np.full((30, 2), 0.5), np.full((8, 2), 0.5)),
    "one each": (np.array([[0.9, 0.1]]), np.array([[0.6, 0.4]])),
}
cases = pytest.mark.parametrize(("inside", "outside"), CASES.values(), ids=CASES.keys())


def rates(inside, outside):
    """scikit-learn's area and false positive rate."""
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    scores = np.concatenate([inside, outside])
    fpr, tpr, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    return sk.roc_auc_score(truth, scores), fpr[np.argmax(tpr >= 0.95)]


def by_loop(inside, outside):
    """The definitions: all pairs, and the highest threshold that accepts 95 % of the in-distribution examples."""
    area = np.mean([(a > b) + 0.5 * (a == b) for a in inside for b in outside])
    for threshold in sorted(set(inside), reverse=True):
        if 100 * sum(a >= threshold for a in inside) >= 95 * len(inside):
            return area, np.mean([b >= threshold for b in outside])
    raise AssertionError


def scores_of(probabilities):
    return {
        "confidence": probabilities.max(1),
        "entropy": np.array([-stats.entropy(row) for row in probabilities]),
    }


@cases
def test_against_scikit_learn_and_the_definition(inside, outside):
    result = ood_scores({"map": inside}, {"map": outside}, resamples=5)
    assert (result.n_in, result.n_out) == (len(inside), len(outside))
    assert set(result.methods["map"]) == {"confidence", "entropy"}
    near, far = inside.max(1), outside.max(1)
    found = result.methods["map"]["confidence"]
    for expected in (rates(near, far), by_loop(near, far)):
        assert (found.auroc.estimate, found.fpr95.estimate) == pytest.approx(expected, abs=1e-12)
    near, far = -metrics.entropies(inside), -metrics.entropies(outside)
    found = result.methods["map"]["entropy"]
    assert (found.auroc.estimate, found.fpr95.estimate) == pytest.approx(by_loop(near, far), abs=1e-12)


def test_entropies_are_scipys():
    rows = np.concatenate([RNG.dirichlet([0.3] * 5, 20), np.eye(5)])
    np.testing.assert_allclose(metrics.entropies(rows), [stats.entropy(row) for row in rows], atol=1e-12)
    assert not np.signbit(metrics.entropies(np.eye(3))).any()


@cases
def test_intervals_are_those_of_a_plain_loop(inside, outside):
    result = ood_scores({"map": inside}, {"map": outside}, resamples=40, seed=5)
    near = np.concatenate(list(bootstrap.resampling_counts(len(inside), 40, (5, 0)))).astype(int)
    far = np.concatenate(list(bootstrap.resampling_counts(len(outside), 40, (5, 1)))).astype(int)
    for by, function in (("confidence", lambda p: p.max(1)), ("entropy", lambda p: -metrics.entropies(p))):
        a, b = function(inside), function(outside)
        values = np.array([by_loop(np.repeat(a, i), np.repeat(b, j)) for i, j in zip(near, far, strict=True)])
        for k, interval in enumerate(result.methods["map"][by]):
            assert interval[1:] == pytest.approx(np.quantile(values[:, k], [0.025, 0.975]), abs=1e-12)


def test_blocks_do_not_change_the_result(monkeypatch):
    inside, outside = CASES["ties"]
    first = ood_scores({"map": inside}, {"map": outside}, resamples=30)
    monkeypatch.setattr(ood, "_BLOCK_ELEMENTS", 500)
    assert ood_scores({"map": inside}, {"map": outside}, resamples=30) == first


def test_less_mutual_information_looks_familiar():
    inside, outside = CASES["no ties"]
    result = ood_scores(
        {"map": inside, "laplace": inside},
        {"map": outside, "laplace": outside},
        in_mutual_information={"laplace": np.linspace(0.0, 0.1, 130)},
        out_mutual_information={"laplace": np.linspace(0.2, 0.3, 70)},
        resamples=20,
    )
    assert "mutual_information" not in result.methods["map"]
    found = result.methods["laplace"]["mutual_information"]
    assert found.auroc == (1.0, 1.0, 1.0)
    assert found.fpr95 == (0.0, 0.0, 0.0)
    # Methods see the same resamples.
    assert result.methods["map"]["entropy"] == result.methods["laplace"]["entropy"]
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["methods"]["laplace"]["mutual_information"]["fpr95"] == {"estimate": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, {}), "same methods"),
        (({"map": [[0.5, 0.5]]}, {"laplace": [[0.5, 0.5]]}), "same methods"),
        (({"map": [[0.5, 0.5]]}, {"map": [[0.5, 0.3, 0.2]]}), "same classes"),
        (({"a": [[1.0, 0.0]], "b": [[1.0, 0.0]] * 2}, {"a": [[1.0, 0.0]], "b": [[1.0, 0.0]]}), "same examples"),
        (({"map": [[2.0, 3.0]]}, {"map": [[0.5, 0.5]]}), "softmax"),
        (({"map": [[0.5, 0.5]]}, {"map": [[0.5, 0.5]]}, {"map": [0.1]}, {}), "same methods on both"),
        (({"map": [[0.5, 0.5]]}, {"map": [[0.5, 0.5]]}, {"map": [0.1]}, {"map": [0.1, 0.2]}), "give 1 finite"),
        (({"map": [[0.5, 0.5]]}, {"map": [[0.5, 0.5]]}, {"map": [np.nan]}, {"map": [0.1]}), "give 1 finite"),
    ],
)
def test_what_does_not_belong_together_is_refused(arguments, message):
    inside, outside, *information = arguments
    with pytest.raises(LaplaceLoRAError, match=message):
        ood_scores(
            inside,
            outside,
            in_mutual_information=information[0] if information else None,
            out_mutual_information=information[1] if information else None,
        )
