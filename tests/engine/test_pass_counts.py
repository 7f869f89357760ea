"""Passes are what costs: how often the model runs, forward and backward, is part of the contract."""

from collections.abc import Iterator

import pytest
import torch

from engine.counting import Passes, counted_model
from engine.support import close, fitted, setting
from laplace_lora import LaplaceConfig, LaplaceLoRA
from tiny_models import MODELS, Batch, batches, collate, once, random_examples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("num_labels", [2, 3, 5])
@pytest.mark.parametrize(
    ("structure", "fisher"),
    [
        ("kron", "exact"),
        ("kron", "rademacher"),
        ("kron", "mc"),
        ("diag", "exact"),
        ("diag", "rademacher"),
        ("diag", "mc"),
        ("exact", "exact"),
        ("kron_low_rank", "exact"),
        ("kron_low_rank", "rademacher"),
        ("last_layer", "exact"),
    ],
)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_fit_tune_predict(name: str, structure: str, fisher: str, num_labels: int, passes: Passes) -> None:
    model = counted_model(MODELS[name](num_labels), passes)
    train, test = random_examples(7, num_labels), random_examples(4, num_labels, seed=4)
    la = fitted(model, train, size=3, structure=structure, fisher=fisher)
    contrasts = 0 if structure == "last_layer" else num_labels - 1
    rows = min(contrasts, 1) if fisher != "exact" else contrasts
    assert passes.take() == (3, 3 * rows)
    la.tune_prior("evidence")
    la.log_marginal_likelihood()
    la.summary()
    la.sample(2)
    assert passes.take() == (0, 0)
    la.predict(collate(test))
    assert passes.take() == (1, contrasts)
    la.predict_dataset(batches(test, 2))
    assert passes.take() == (2, 2 * contrasts)
    la.tune_prior("validation", batches(test, 2))
    assert passes.take() == (2, 2 * contrasts)


def test_a_second_pass_is_counted(passes: Passes) -> None:
    """Twice what ``kron`` takes, and nothing more to tune and predict."""
    model = counted_model(MODELS["bert"](3), passes)
    la = fitted(model, random_examples(7), size=3, structure="ekfac")
    assert passes.take() == (6, 12)
    la.tune_prior("evidence")
    assert passes.take() == (0, 0)
    la.predict(collate(random_examples(4, seed=4)))
    assert passes.take() == (1, 2)


@pytest.mark.parametrize("kfac", ["fitted", "expand", "reduce"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_passes_do_not_grow_with_the_layers(targets: object, kfac: str, passes: Passes) -> None:
    model = counted_model(MODELS["llama"](3, targets=targets), passes)
    fitted(model, random_examples(4), size=2, kfac=kfac)
    assert passes.take() == (2, 4)


class _ReadOnce:
    """A data set whose second reading fails."""

    def __init__(self, items: list[Batch]) -> None:
        self.items, self.readings = items, 0

    def __iter__(self) -> Iterator[Batch]:
        self.readings += 1
        assert self.readings == 1, "read twice"
        return iter(self.items)


@pytest.mark.parametrize("structure", ["kron", "diag", "exact", "last_layer"])
def test_loaders_are_read_once(structure: str) -> None:
    model, train, test = setting()
    reference = fitted(model, train, structure=structure)
    la = LaplaceLoRA(model, LaplaceConfig(structure=structure, progress=False))
    for loader in (once(batches(train, 4)), _ReadOnce(batches(train, 4))):
        la.fit(loader)
        close(la.predict(collate(test)).covariance, reference.predict(collate(test)).covariance, 1e-12)
    la.tune_prior("evidence")
    la.tune_prior("validation", once(batches(test, 2)))
    la.tune_prior("validation", _ReadOnce(batches(test, 2)))
    la.predict_dataset(once(batches(test, 2)))
    la.predict_dataset(_ReadOnce(batches(test, 2)))


def test_a_progress_bar_reads_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    model, train, test = setting()
    la = LaplaceLoRA(model, LaplaceConfig(progress=True))
    la.fit(_ReadOnce(batches(train, 4)))
    la.predict_dataset(once(batches(test, 2)))
    assert capsys.readouterr().out == ""


def test_ordinary_torch_loaders_work() -> None:
    model, train, test = setting()
    loader = torch.utils.data.DataLoader(train, batch_size=4, shuffle=False, collate_fn=collate)
    la = fitted(model, [train[0]])
    la.fit(loader)
    close(la.predict(collate(test)).covariance, fitted(model, train).predict(collate(test)).covariance, 1e-12)


def test_a_torch_loader_draws_from_the_random_state_once() -> None:
    """Starting a DataLoader draws a seed (and an order); starting it twice would shift everything after it."""
    model, train, _ = setting()
    loader = torch.utils.data.DataLoader(train, batch_size=4, shuffle=True, collate_fn=collate)
    la = LaplaceLoRA(model, LaplaceConfig(progress=False))
    states = []
    for read in (list, la.fit, la.predict_dataset, lambda batches: la.tune_prior("validation", batches)):
        torch.manual_seed(3)
        read(loader)
        states.append(torch.get_rng_state())
    assert all(torch.equal(state, states[0]) for state in states)
