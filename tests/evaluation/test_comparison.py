"""The comparison of any number of methods, its JSON, its tables and its verdict."""

import dataclasses
import json

import numpy as np
import pytest

from evaluation.made_up import example, sharpened
from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.evaluation import compare, score, terminal_table, verdict
from laplace_lora.evaluation.bootstrap import Interval
from laplace_lora.evaluation.comparison import COMPARED
from laplace_lora.evaluation.names import METRICS, outcome
from laplace_lora.evaluation.tables import contrasts, difference_cell, number
from laplace_lora.evaluation.verdict import verdict_parts


def three(n=300, classes=2, **settings):
    before, truth, labels = example(n, classes)
    methods = {"map": before, "temperature": sharpened(truth, 1.5), "laplace": truth}
    return compare(methods, labels, truth, **{"resamples": 100, **settings})


def test_the_scores_are_those_of_each_method_and_differences_are_theirs():
    before, truth, labels = example()
    comparison = compare({"map": before, "laplace": truth}, labels, truth, resamples=100)
    assert comparison.methods == {"map": score(before, labels, truth), "laplace": score(truth, labels, truth)}
    assert comparison.methods["laplace"].kl == 0.0
    assert set(comparison.difference) == set(COMPARED)
    for name, interval in comparison.difference.items():
        expected = getattr(comparison.methods["laplace"], name) - getattr(comparison.methods["map"], name)
        assert interval.estimate == pytest.approx(expected)


def test_the_json_keeps_its_keys():
    document = json.loads(json.dumps(three().to_dict(), allow_nan=False))
    assert document["n"] == 300
    assert list(document["methods"]) == ["map", "temperature", "laplace"]
    metrics = {
        "accuracy",
        "nll",
        "brier",
        "ece",
        "ece_equal_mass",
        "ece_floor",
        "ece_equal_mass_floor",
        "confidence",
        "auroc",
        "aurc",
        "kl",
    }
    assert metrics | {"impossible", "intervals"} == set(document["methods"]["map"])
    assert set(document["methods"]["map"]["intervals"]) == metrics - {"ece_floor", "ece_equal_mass_floor"}
    assert set(document["methods"]["map"]["intervals"]["auroc"]) == {"low", "high"}
    assert document["difference"] == document["differences"]["laplace"]
    assert set(document["difference"]["nll"]) == {"estimate", "low", "high"}
    assert set(document["differences"]) == {"temperature", "laplace"}
    assert set(document["rivals"]) == {"temperature"}
    before, _, labels = example()
    unknown = compare({"map": before}, labels, resamples=10).to_dict()
    assert "kl" not in unknown["methods"]["map"]
    assert (unknown["difference"], unknown["differences"], unknown["rivals"]) == ({}, {}, {})


def test_the_rival_is_taken_off_the_subject():
    comparison = three()
    for field, interval in comparison.rivals["temperature"].items():
        through_the_reference = (
            comparison.differences["laplace"][field].estimate - comparison.differences["temperature"][field].estimate
        )
        assert interval.estimate == pytest.approx(through_the_reference)


@pytest.mark.parametrize(
    ("names", "reference", "subject", "expected"),
    [
        (["map", "laplace", "temperature"], "map", None, "laplace"),
        (["map", "ensemble", "dropout"], "map", None, "dropout"),
        (["laplace", "map"], "map", None, "laplace"),
        (["laplace", "map"], "laplace", None, "map"),
        (["map", "laplace", "x"], "map", "x", "x"),
        (["laplace"], "laplace", None, "laplace"),
    ],
)
def test_who_is_judged(names, reference, subject, expected):
    before, _, labels = example(40)
    methods = dict.fromkeys(names, before)
    comparison = compare(methods, labels, reference=reference, subject=subject, resamples=10)
    assert comparison.subject == expected
    assert set(comparison.differences) == set(names) - {reference}
    assert terminal_table(comparison)
    assert verdict(comparison)


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        ({}, {}, "at least one method"),
        (np.full((4, 2), 0.5), {}, "as a mapping"),
        ({"laplace": np.full((4, 2), 0.5)}, {}, "no method 'map'.*laplace"),
        ({"map": np.full((4, 2), 0.5)}, {"subject": "x"}, "no method 'x' to judge"),
        ({"map": np.full((4, 2), 0.5), "laplace": np.full((4, 3), 1 / 3)}, {}, "same examples"),
        ({"map": np.full((4, 2), 0.5), "laplace": np.ones((4, 2))}, {}, "row 0 of laplace"),
        ({"map": np.full((4, 2), 0.5)}, {"resamples": 0}, "1 or more"),
        ({"map": np.full((4, 2), 0.5)}, {"truth": np.full((4, 3), 1 / 3)}, "differ in shape"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods, settings, message):
    with pytest.raises(LaplaceLoRAError, match=message):
        compare(methods, [0, 1, 0, 1], **settings)


def comparison_like(nll, after_ece, before_confidence=0.95, n=100, **changes):
    """A comparison whose numbers are set by hand."""
    before, truth, labels = example(100)
    base = compare({"map": before, "laplace": truth}, labels, resamples=50)
    scores = base.methods
    return dataclasses.replace(
        base,
        n=n,
        methods={
            "map": dataclasses.replace(
                scores["map"], ece=0.2, ece_floor=0.02, accuracy=0.8, confidence=before_confidence
            ),
            "laplace": dataclasses.replace(scores["laplace"], ece=after_ece, ece_floor=0.04, accuracy=0.8, **changes),
        },
        differences={"laplace": {**base.difference, "nll": nll}},
    )


@pytest.mark.parametrize(
    ("nll", "after_ece", "confidence", "start"),
    [
        (Interval(-0.3, -0.4, -0.2), 0.05, 0.95, "Laplace turned an over-confident model into a calibrated one"),
        (Interval(-0.3, -0.4, -0.2), 0.05, 0.60, "Laplace turned an under-confident model into a calibrated one"),
        (Interval(-0.3, -0.4, -0.2), 0.10, 0.95, "Laplace made the probabilities better, though not yet calibrated"),
        (Interval(-0.3, -0.4, -0.2), 0.30, 0.95, "Laplace improved the log loss but not the calibration"),
        (Interval(-0.1, -0.4, 0.2), 0.05, 0.95, "Laplace made no measurable difference here"),
        (Interval(0.3, 0.2, 0.4), 0.05, 0.95, "Laplace made the predictions worse here"),
    ],
)
def test_the_verdict_follows_the_numbers(nll, after_ece, confidence, start):
    sentence = verdict(comparison_like(nll, after_ece, confidence))
    assert sentence.startswith(start + ": the log loss went from ")
    assert "0.200" in sentence
    assert f"{after_ece:.3f}" in sentence
    assert "accuracy stayed at 80.0 %" in sentence
    assert sentence.endswith("Keep MAP, or tune the prior on held-out data.") == ("worse" in start)


def test_the_verdict_tells_of_lost_accuracy():
    comparison = comparison_like(Interval(-0.3, -0.4, -0.2), 0.05)
    laplace = dataclasses.replace(comparison.methods["laplace"], accuracy=0.75)
    comparison = dataclasses.replace(comparison, methods={**comparison.methods, "laplace": laplace})
    assert verdict(comparison).endswith("accuracy went from 80.0 % to 75.0 %.")
    lost = {**comparison.difference, "accuracy": Interval(-0.05, -0.08, -0.02)}
    comparison = dataclasses.replace(comparison, differences={"laplace": lost})
    assert verdict(comparison).endswith("accuracy went from 80.0 % to 75.0 % (a measurable loss).")


def test_a_calibrated_model_is_not_said_to_have_been_over_confident():
    comparison = comparison_like(Interval(-0.3, -0.4, -0.2), 0.05)
    calm = dataclasses.replace(comparison.methods["map"], ece=0.02)
    comparison = dataclasses.replace(comparison, methods={**comparison.methods, "map": calm})
    assert verdict(comparison).startswith("Laplace improved a model that was calibrated already")


def test_too_few_examples_are_not_judged():
    comparison = comparison_like(Interval(-0.3, -0.4, -0.2), 0.05, n=29)
    assert verdict(comparison).startswith("29 test examples are too few to judge Laplace: ")
    assert {row.field: outcome(comparison, comparison.difference[row.field], True) for row in METRICS[:1]} == {
        "nll": ""
    }
    alone = compare({"map": np.full((3, 2), 0.5)}, [0, 1, 0], resamples=10)
    assert verdict(alone).startswith("3 test examples are too few to judge MAP")


def test_infinite_losses_leave_the_decision_to_the_brier_score():
    before, truth, labels = example(300)
    sure = before.copy()
    sure[:2] = np.eye(2)[1 - labels[:2]]
    comparison = compare({"map": sure, "laplace": truth}, labels, resamples=200)
    sentence = verdict(comparison)
    assert sentence.startswith("Laplace turned an over-confident model into a calibrated one: ")
    assert "MAP gave 2 of 300 labels probability zero, an infinite log loss; the Brier score went from" in sentence
    assert "inf" in terminal_table(comparison)
    # The other way round: what the subject calls impossible is worse whatever the Brier score says.
    worse = truth.copy()
    worse[:2] = np.eye(2)[1 - labels[:2]]
    assert verdict(compare({"map": before, "laplace": worse}, labels, resamples=200)).startswith(
        "Laplace made the predictions worse here: Laplace gave 2 of 300 labels"
    )
    rival = compare({"map": before, "laplace": truth, "other": worse}, labels, resamples=200)
    assert "other (log loss infinite, calibration error" in verdict(rival)
    both = compare({"map": sure, "laplace": sure}, labels, resamples=50)
    assert verdict(both).startswith("Laplace made no measurable difference here: MAP gave 2 of 300 labels")
    assert "Laplace gave 2 of 300" in verdict(compare({"laplace": sure}, labels, reference="laplace", resamples=10))


def test_the_rival_has_its_sentence():
    comparison = three()
    for interval, words in (
        (Interval(-0.1, -0.2, -0.05), "Laplace is better than Temperature (log loss"),
        (Interval(0.1, 0.05, 0.2), "Laplace is worse than Temperature (log loss"),
        (Interval(0.1, -0.05, 0.2), "There is no measurable difference between Laplace and Temperature (log loss"),
    ):
        rivals = {"temperature": {**comparison.rivals["temperature"], "nll": interval}}
        assert words in verdict(dataclasses.replace(comparison, rivals=rivals))


def test_one_method_is_judged_by_itself():
    before, truth, labels = example(400)
    alone = compare({"map": before}, labels, resamples=10)
    assert verdict_parts(alone).headline == "MAP is over-confident"
    assert verdict_parts(compare({"x": truth}, labels, reference="x", resamples=10)).headline == (
        "x is calibrated, as far as 400 examples can show"
    )


def test_the_table_calls_better_and_worse_by_the_metrics_own_direction():
    before, truth, labels = example()
    comparison = compare({"map": before, "laplace": truth}, labels, truth, resamples=200)
    changed = {**comparison.difference, "accuracy": Interval(-0.1, -0.2, -0.05), "auroc": Interval(0.1, 0.05, 0.2)}
    comparison = dataclasses.replace(comparison, differences={"laplace": changed})
    (pair,) = contrasts(comparison)
    cells = {metric.field: difference_cell(comparison, pair, metric) for metric in METRICS}
    assert cells["nll"].outcome == "better"
    assert cells["accuracy"].outcome == "worse"
    assert cells["auroc"].outcome == "better"
    assert cells["ece_floor"] is None
    table = terminal_table(comparison)
    assert max(len(line) for line in table.splitlines()) <= 88
    assert f"{comparison.methods['laplace'].nll:.3f}" in table
    assert len(table.splitlines()) == 2 + len(METRICS)
    assert table.startswith(f"n = {comparison.n} ")


@pytest.mark.parametrize("count", [1, 2, 3, 9])
@pytest.mark.parametrize("name", ["m", "a method whose name goes on for a good while, number "])
def test_the_terminal_table_stays_narrow_with_any_number_of_methods(count, name):
    before, _, labels = example(40)
    methods = {f"{name}{i}": before for i in range(count)}
    comparison = compare(methods, labels, reference=f"{name}0", resamples=10)
    lines = terminal_table(comparison).splitlines()
    assert max(len(line) for line in lines) <= 88
    assert all(line == line.rstrip() for line in lines)
    assert sum(line.count(f"{comparison.methods[f'{name}0'].brier:.3f}") for line in lines) >= count


def test_undefined_numbers_are_not_invented():
    comparison = compare({"map": np.tile([0.8, 0.2], (40, 1))}, np.zeros(40, int), resamples=10)
    (line,) = [line for line in terminal_table(comparison).splitlines() if line.startswith("Error detection")]
    assert line.split()[-1] == "n/a"
    assert comparison.to_dict()["methods"]["map"]["auroc"] is None
    assert (number(None), number(float("nan")), number(float("inf")), number(float("-inf"), "+")) == (
        "n/a",
        "n/a",
        "inf",
        "-inf",
    )
