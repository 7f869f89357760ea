"""Supported means equal: every row of the table of adapters against a dense oracle that knows nothing of it."""

import warnings
from collections.abc import Iterator

import peft
import pytest
import torch
from torch import nn

from adapters.double import double_softmax
from adapters.support import DELTA, collate, data, fitted, shared
from adapters.variants import ANSWERS, ROWS
from engine.support import close
from laplace_lora import LaplaceConfig, LaplaceLoRA
from tiny_models import Batch, Example

# PEFT's and transformers' own; and that rows go one by one, of which test_mixing_layers.py has a test.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    with double_softmax():
        yield


# --- equality --------------------------------------------------------------------------------------------------------

#: Everything here is float64, with the softmax, norms and rotary angles of transformers. Measured: 1.3e-14 at most.
RTOL = 1e-10
FULL = [name for name, row in ROWS.items() if not row.short]
CAUSAL = [name for name, row in ROWS.items() if row.causal]


@pytest.mark.parametrize("name", ROWS)
def test_exact(name: str) -> None:
    row, (model, dense) = ROWS[name], shared(name)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        la = fitted(row, model, "exact")
    # The slow way is taken where it must be, and nowhere else.
    assert any("one by one" in str(warning.message) for warning in seen) == row.mixes
    p = la.predict(collate(row, data(row)[1]))
    close(p.mean, torch.stack(dense.test_logits), RTOL)
    close(p.covariance, dense.covariance("exact", DELTA), RTOL)
    assert la.log_marginal_likelihood() == pytest.approx(dense.log_evidence(DELTA), rel=RTOL)


@pytest.mark.parametrize("structure", ["diag", "kron"])
@pytest.mark.parametrize("name", FULL)
def test_diagonal_and_kronecker(name: str, structure: str) -> None:
    row, (model, dense) = ROWS[name], shared(name)
    p = fitted(row, model, structure).predict(collate(row, data(row)[1]))
    close(p.covariance, dense.covariance(structure, DELTA), RTOL)


@pytest.mark.parametrize("name", CAUSAL)
def test_padded_on_the_left(name: str) -> None:
    row, (model, dense) = ROWS[name], shared(name)
    p = fitted(row, model, "exact", "left").predict(collate(row, data(row)[1], "left"))
    close(p.mean, torch.stack(dense.test_logits), RTOL)
    close(p.covariance, dense.covariance("exact", DELTA), RTOL)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["llama, classifier, sdpa", "qwen2, answers, sdpa", "tied", "embedding, GPT-2"])
def test_batches_of_one_padded_text(name: str, side: str) -> None:
    row, (model, dense) = ROWS[name], shared(name)
    filler = {"input_ids": torch.full((12,), 5), "labels": torch.tensor(0)}

    def ones(texts: list[Example]) -> list[Batch]:
        return [{key: value[:1] for key, value in collate(row, [text, filler], side).items()} for text in texts]

    config = LaplaceConfig(structure="exact", prior_precision=DELTA, progress=False)
    train, test = data(row)
    la = LaplaceLoRA(model, config, row.readout).fit(ones(train))
    close(la.predict_dataset(ones(test)).covariance, dense.covariance("exact", DELTA), RTOL)


# --- samples ---------------------------------------------------------------------------------------------------------


def _covered(name: str) -> dict[str, torch.Tensor]:
    """Return which entries of which parameters a sample must move, as masks."""
    row, (model, dense) = ROWS[name], shared(name)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    masks = {}
    for matrix in dense.matrices:
        for key in (*matrix.names, matrix.bias):
            if key is not None:
                masks[key] = torch.ones_like(parameters[key], dtype=torch.bool)
                if row.answers and len(matrix.names) == 1 and "lm_head" in key and len(masks[key]) > max(ANSWERS):
                    masks[key][:] = False
                    masks[key][list(ANSWERS)] = True
    return masks


def _values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("name", FULL)
def test_a_sample_moves_what_is_covered_and_nothing_else(name: str) -> None:
    row, (model, dense) = ROWS[name], shared(name)
    before = _values(model)
    adapter = model.active_adapters[0]
    (sample,) = fitted(row, model, "exact").sample(1, seed=4)
    own = peft.get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    assert list(sample) == list(own)
    assert all(torch.equal(value, before[key]) for key, value in _values(model).items())
    fresh = row.build()
    places = {key: value.data_ptr() for key, value in fresh.named_parameters(remove_duplicate=False)}
    result = peft.set_peft_model_state_dict(fresh, sample, adapter_name=adapter)
    # With bias="all" PEFT saves the bias of a trained head twice, and loads it once.
    assert (
        result.unexpected_keys == peft.set_peft_model_state_dict(row.build(), own, adapter_name=adapter).unexpected_keys
    )
    after, masks = _values(fresh), _covered(name)
    for key, value in after.items():
        moved = value != before[key]
        expected = masks.get(key, torch.zeros_like(moved))
        # A weight may fall on its old value in fp64 with probability 0.
        assert torch.equal(moved, expected), key
    assert {key: value.data_ptr() for key, value in fresh.named_parameters(remove_duplicate=False)} == places
    for matrix in dense.matrices:
        first = after[matrix.names[0]]
        for other, turned in zip(matrix.names, matrix.turned, strict=True):
            assert torch.equal(first, after[other].T if turned else after[other])
    # As it was loaded, so it was meant: what is read back is the sample.
    loaded = peft.get_peft_model_state_dict(fresh, adapter_name=adapter, save_embedding_layers=False)
    assert all(torch.equal(loaded[key], value) for key, value in sample.items())
