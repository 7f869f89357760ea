"""Covariances between examples equal the dense oracle's, for every structure and kind of readout."""

import pytest
import torch

import oracles
from engine.support import CASES, close, fitted, oracle, setting, spread
from laplace_lora import LaplaceLoRAError
from tiny_models import batches, collate


def _expected(deltas: oracles.Deltas, name: str, num_labels: int, structure: str, kfac: str = "fitted") -> torch.Tensor:
    """Return (n, K, n, K) J P^-1 J^T of the test examples' centred logits, written out in full."""
    model, _, test = setting(name, num_labels)
    posterior = oracle(name, num_labels, structure, kfac)
    rows = [oracles.joint_jacobian(model, example, posterior.blocks) for example in test]
    stacked = torch.cat([each - each.mean(0, keepdim=True) for each in rows])
    return (stacked @ posterior.covariance(deltas) @ stacked.T).view(2 * (len(test), num_labels))


@pytest.mark.parametrize(("structure", "kfac"), CASES)
@pytest.mark.parametrize("num_labels", [2, 4])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_equals_the_oracle(name: str, num_labels: int, structure: str, kfac: str) -> None:
    model, train, test = setting(name, num_labels)
    la = fitted(model, train, structure=structure, kfac=kfac, prior_precision=0.7)
    joint = la.predict_joint(batches(test, 3))
    close(joint.covariance, _expected(0.7, name, num_labels, structure, kfac))
    p = la.predict(collate(test))
    torch.testing.assert_close(joint.mean, p.mean, rtol=1e-10, atol=1e-12)
    own = torch.arange(len(test))
    close(joint.covariance[own, :, own], p.covariance, 1e-10)
    assert joint.matrix.shape == 2 * (len(test) * num_labels,)
    assert torch.equal(joint.matrix[:num_labels, num_labels : 2 * num_labels], joint.covariance[0, :, 1])


@pytest.mark.parametrize("structure", ["kron", "exact", "low_rank"])
def test_several_prior_precisions(structure: str) -> None:
    model, train, test = setting("bert")
    by_group, deltas = spread(oracle("bert", 3, structure).blocks, "module")
    la = fitted(model, train, structure=structure, prior_groups="module", prior_precision=by_group)
    close(la.predict_joint([collate(test)]).covariance, _expected(deltas, "bert", 3, structure))


def test_does_not_depend_on_batches() -> None:
    model, train, test = setting("bert")
    la = fitted(model, train)
    close(la.predict_joint(batches(test, 1)).matrix, la.predict_joint([collate(test)]).matrix, 1e-10)


def test_ambient_modes_change_nothing_and_the_model_is_left_alone() -> None:
    model, train, test = setting("bert")
    la = fitted(model, train)
    reference = la.predict_joint([collate(test)]).matrix
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.train()
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            inside = la.predict_joint([collate(test)]).matrix
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    # The model's own passes are bfloat16 there; the products of Jacobians are not.
    close(inside, reference, 0.1)
    assert inside.dtype == torch.float64
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert trainable == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not any(module._forward_hooks for module in model.modules())


def test_too_many_examples_are_refused() -> None:
    model, train, test = setting("bert")
    la = fitted(model, train, memory_limit_bytes=200_000)
    with pytest.raises(LaplaceLoRAError, match="Give fewer examples"):
        la.predict_joint([collate(test)] * 40)


def test_no_examples_are_refused() -> None:
    model, train, _ = setting("bert")
    with pytest.raises(LaplaceLoRAError, match="no examples"):
        fitted(model, train).predict_joint([])
