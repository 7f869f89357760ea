"""The log evidence equals the dense oracle's, and tuning ends where its gradient is zero."""

import math

import pytest

import oracles
from engine.support import CASES, STRUCTURES, by_block, close, fitted, oracle, setting, spread
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from tiny_models import collate, random_examples, tiny_bert

# Tuning may end with a warning about the predictive on the training data; these models were never trained.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(("structure", "kfac"), CASES)
@pytest.mark.parametrize("num_labels", [2, 4])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_equals_the_oracle(name: str, num_labels: int, structure: str, kfac: str) -> None:
    model, train, _ = setting(name, num_labels)
    la = fitted(model, train, structure=structure, kfac=kfac, prior_precision=0.7)
    expected = oracle(name, num_labels, structure, kfac).log_evidence(0.7)
    assert math.isclose(float(la.log_marginal_likelihood()), expected, rel_tol=1e-9)


@pytest.mark.parametrize(("structure", "kfac"), CASES)
@pytest.mark.parametrize("kind", ["module", "matrix"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_several_prior_precisions(name: str, kind: str, structure: str, kfac: str) -> None:
    model, train, _ = setting(name)
    posterior = oracle(name, 3, structure, kfac)
    by_group, deltas = spread(posterior.blocks, kind)
    la = fitted(model, train, structure=structure, kfac=kfac, prior_groups=kind, prior_precision=by_group)
    assert math.isclose(float(la.log_marginal_likelihood()), posterior.log_evidence(deltas), rel_tol=1e-9)


@pytest.mark.parametrize("structure", ["kron", "diag", "exact"])
def test_fully_trained_layers_can_be_left_out(structure: str) -> None:
    model, train, _ = setting()
    la = fitted(model, train, structure=structure, include_modules_to_save=False)
    expected = oracle("bert", 3, structure, include_head=False).log_evidence(1.0)
    assert math.isclose(float(la.log_marginal_likelihood()), expected, rel_tol=1e-9)


def _assert_stationary(la: LaplaceLoRA, posterior: oracles.DensePosterior, kind: str) -> None:
    """Check that every group's gamma equals delta |theta|^2, and that no step in log delta does better."""
    deltas = by_block(posterior.blocks, kind, la.prior_precision)
    groups = oracles.prior_groups(posterior.blocks, kind)
    gradient = oracles.by_group(posterior.evidence_gradient(deltas), groups)
    gamma = oracles.by_group(posterior.effective_parameters(deltas), groups)
    for group in gradient:
        assert abs(gradient[group]) <= 1e-5 * gamma[group], group
    best = posterior.log_evidence(deltas)
    assert math.isclose(float(la.log_marginal_likelihood()), best, rel_tol=1e-9)
    for group in gradient:
        for factor in (0.8, 1.25):
            moved = {name: value * (factor if groups[name] == group else 1) for name, value in deltas.items()}
            assert posterior.log_evidence(moved) < best


@pytest.mark.parametrize("kind", ["global", "module", "matrix"])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_tuning_ends_at_the_root_of_the_gradient(name: str, structure: str, kind: str) -> None:
    # The queries of Llama's and BERT's last layer have small but ordinary curvature: no group is without data.
    model, train, _ = setting(name)
    la = fitted(model, train, structure=structure, prior_groups=kind)
    before = float(la.log_marginal_likelihood())
    la.tune_prior("evidence")
    assert isinstance(la.prior_precision, float if kind == "global" else dict)
    _assert_stationary(la, oracle(name, 3, structure), kind)
    assert float(la.log_marginal_likelihood()) > before


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("start", [1e-4, 1e5])
def test_tuning_does_not_depend_on_where_it_starts(start: float, structure: str) -> None:
    model, train, _ = setting()
    la = fitted(model, train, structure=structure, prior_precision=start)
    la.tune_prior("evidence")
    _assert_stationary(la, oracle("bert", 3, structure), "global")


def test_predictions_follow_the_tuned_precision() -> None:
    model, train, test = setting()
    tuned = fitted(model, train)
    tuned.tune_prior("evidence")
    fresh = fitted(model, train, prior_precision=tuned.prior_precision)
    close(tuned.predict(collate(test)).covariance, fresh.predict(collate(test)).covariance, 1e-12)


def test_a_given_precision_is_respected() -> None:
    model, train, test = setting()
    la = fitted(model, train, prior_precision=3.7)
    la.predict(collate(test))
    assert la.prior_precision == 3.7


def test_a_zero_matrix_gets_a_finite_precision() -> None:
    """An untouched lora_B has |theta| = 0: the evidence pushes its precision up without bound."""
    model = tiny_bert()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.zero_()
    la = fitted(model, random_examples(6), prior_groups="matrix")
    la.tune_prior("evidence")
    assert all(0 < value < math.inf for value in la.prior_precision.values())
    assert math.isfinite(float(la.log_marginal_likelihood()))
    covariance = la.predict(collate(random_examples(3, seed=4))).covariance
    assert covariance.isfinite().all()


def test_labels_are_needed_for_the_evidence_and_for_nothing_else() -> None:
    model, train, test = setting()
    bare = [{"input_ids": example["input_ids"]} for example in train]
    la = fitted(model, bare)
    close(la.predict(collate(test)).covariance, fitted(model, train).predict(collate(test)).covariance, 1e-14)
    with pytest.raises(LaplaceLoRAError, match="label"):
        la.log_marginal_likelihood()


def test_nothing_is_known_before_fit() -> None:
    model, _, test = setting()
    la = LaplaceLoRA(model, LaplaceConfig(progress=False))
    for call in (lambda: la.predict(collate(test)), la.log_marginal_likelihood, lambda: la.tune_prior("evidence")):
        with pytest.raises(LaplaceLoRAError, match="fit"):
            call()
