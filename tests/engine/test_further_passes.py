"""A structure that reads the training data twice: what it may be given, and that a second pass is the first one's."""

import pytest
import torch

from engine.support import close, fitted, setting
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
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
