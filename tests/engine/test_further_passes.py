"""A structure that reads the training data twice: what it may be given, and that a second pass is the first one's."""

from typing import Literal

import pytest
import torch

import oracles
from engine.support import close, fitted, setting
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from laplace_lora.posterior import EigenvalueCorrectedPosterior
from tiny_models import Batch, batches, collate, once


class _Growing:
    """A data set that is another one with every reading."""

    def __init__(self, items: list[Batch]) -> None:
        self.items, self.readings = items, 0

    def __iter__(self) -> object:
        self.readings += 1
        return iter(self.items[: -self.readings])


class _Reversed(_Growing):
    """Every other reading goes backwards, as a shuffling loader may."""

    def __iter__(self) -> object:
        self.readings += 1
        return iter(self.items[:: (-1) ** self.readings])


def _estimator(**settings: object) -> LaplaceLoRA:
    model, _, _ = setting()
    return LaplaceLoRA(model, LaplaceConfig(structure="ekfac", progress=False, **settings))  # type: ignore[arg-type]


def test_what_can_be_read_only_once_is_refused_before_it_is_read() -> None:
    _, train, _ = setting()
    loader = once(batches(train, 2))
    with pytest.raises(LaplaceLoRAError, match=r"reads the training data 2 times.*DataLoader or a list"):
        _estimator().fit(loader)
    assert len(list(loader)) == 3


@pytest.mark.parametrize("readout_known", [True, False])
def test_other_examples_in_the_second_pass_are_refused(readout_known: bool) -> None:
    _, train, _ = setting()
    la = _estimator()
    if readout_known:
        la.fit(batches(train, 2))
    with pytest.raises(LaplaceLoRAError, match="pass 2 saw other examples"):
        la.fit(_Growing(batches(train, 2)))
    with pytest.raises(LaplaceLoRAError, match="not fitted"):
        la.predict(collate(train))


@pytest.mark.parametrize("fisher", ["exact", "rademacher", "mc"])
def test_neither_order_nor_batches_matter(fisher: str) -> None:
    """Random signs and labels belong to examples, so that both passes see the same rows."""
    model, train, test = setting()
    plain = fitted(model, train, size=6, structure="ekfac", fisher=fisher)
    shuffled = _estimator(fisher=fisher).fit(_Reversed(batches(train, 2)))
    close(shuffled.predict(collate(test)).covariance, plain.predict(collate(test)).covariance, 1e-6)
    assert torch.equal(shuffled.training.inputs, plain.training.inputs)


@pytest.mark.parametrize("kfac", ["fitted", "expand"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_eigenvalues_are_the_exact_blocks_in_a_basis_of_the_factors(
    name: str, kfac: Literal["fitted", "expand"]
) -> None:
    """In the library's own basis, whose vectors of nearly equal eigenvalues rounding decides."""
    model, train, _ = setting(name)
    posterior = fitted(model, train, structure="ekfac", kfac=kfac).posterior
    assert isinstance(posterior, EigenvalueCorrectedPosterior)
    parts = oracles.root_parts(model, train, oracles.blocks(model, True))
    for index, shape in enumerate(posterior.shapes):
        of_block = parts[shape.name]
        basis = posterior.bases[index]
        for factor, side in zip(oracles.kronecker_factors(of_block, kfac), (basis.left, basis.right), strict=True):
            turned = side.vectors.mT @ factor @ side.vectors
            close(turned, torch.diag(turned.diagonal()), 1e-12)
            close(side.vectors.mT @ side.vectors, torch.eye(side.vectors.shape[1], dtype=torch.float64), 1e-12)
        exact = oracles.exact_block(of_block)
        unit = torch.eye(shape.size, dtype=torch.float64).unflatten(1, (shape.out_features, shape.in_features))
        for coordinates, values, directions in zip(
            basis.rotate(unit), posterior.values[index], basis.directions, strict=True
        ):
            rotation = coordinates.flatten(start_dim=1)
            squares = (rotation.mT @ exact @ rotation).diagonal().unflatten(0, coordinates.shape[1:])
            of_tail = values.shape[1] < squares.shape[1]
            expected = squares.sum(dim=1, keepdim=True) / directions if of_tail else squares
            assert values.shape == expected.shape
            assert float((values - expected).abs().max()) <= 1e-9 * float(exact.trace())


@pytest.mark.parametrize(
    ("kfac", "words"), [("reduce", "arbitrary eigenvectors"), ("official", "the same as 'expand'")]
)
def test_rules_that_make_no_basis_of_their_own_are_refused(kfac: str, words: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=words):
        _estimator(kfac=kfac)
