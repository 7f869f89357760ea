"""What a review of the readouts found: each was a wrong number, or a message that led nowhere."""

from typing import Any

import pytest
import torch

from laplace_lora import ClassLogits, LaplaceConfig, LaplaceLoRA, LaplaceLoRAError, PairwiseReward, Scalar
from tiny_models import collate, random_examples, tiny_llama

QUIET = LaplaceConfig(progress=False)


def _numbers(count: int = 5) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    examples = random_examples(count, 2)
    values = torch.randn(count, dtype=torch.float64, generator=generator)
    return [{**example, "labels": value} for example, value in zip(examples, values, strict=True)]


@pytest.mark.parametrize("labels", [1, 3])
def test_a_padding_token_that_is_not_the_models(labels: int) -> None:
    """Decoders find the last real token by their own padding token; the mask is what counts."""
    model = tiny_llama(labels)
    readout = Scalar() if labels == 1 else ClassLogits()
    data = _numbers() if labels == 1 else random_examples(5, labels)
    la = LaplaceLoRA(model, QUIET, readout).fit([collate(data)])
    batch = collate(random_examples(4, labels, seed=9))
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 2)}
    torch.testing.assert_close(la.predict(other).mean, la.predict(batch).mean, rtol=1e-12, atol=0)
    again = LaplaceLoRA(model, QUIET, readout).fit([{**collate(data), "input_ids": _padded(collate(data), 2)}])
    torch.testing.assert_close(again.predict(batch).covariance, la.predict(batch).covariance, rtol=1e-10, atol=0)


def _padded(batch: dict[str, torch.Tensor], token: int) -> torch.Tensor:
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, token)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_targets_that_are_not_finite(value: float) -> None:
    data = _numbers()
    data[2]["labels"] = torch.tensor(value, dtype=torch.float64)
    with pytest.raises(LaplaceLoRAError, match="a target is NaN or infinite"):
        LaplaceLoRA(tiny_llama(1), QUIET, Scalar()).fit([collate(data)])
    la = LaplaceLoRA(tiny_llama(1), QUIET, Scalar()).fit([collate(_numbers())])
    with pytest.raises(LaplaceLoRAError, match="a target is NaN or infinite"):
        la.tune_prior("validation", [collate(data)])


def test_a_tie_is_half_right() -> None:
    text = random_examples(1, 2)[0]
    pair = collate([text, text])
    pair.pop("labels")
    la = LaplaceLoRA(tiny_llama(1), QUIET, PairwiseReward()).fit([pair])
    assert la.train_accuracy == 0.5


def test_reduce_compares_no_options() -> None:
    with pytest.raises(LaplaceLoRAError, match=r"kfac='reduce' would average .* use kfac='fitted'\.$"):
        LaplaceLoRA(tiny_llama(1), LaplaceConfig(kfac="reduce", progress=False), PairwiseReward()).fit(
            [collate(random_examples(4, 2))]
        )


def test_one_output_with_a_gaussian_likelihood_is_a_scalar() -> None:
    la = LaplaceLoRA(tiny_llama(1), LaplaceConfig(likelihood="gaussian", progress=False))
    assert isinstance(la.readout, Scalar)


def test_a_softmax_over_one_output_is_refused_in_predict() -> None:
    pairs = collate(random_examples(4, 2))
    pairs.pop("labels")
    la = LaplaceLoRA(tiny_llama(1), QUIET, PairwiseReward()).fit([pairs])
    with pytest.raises(LaplaceLoRAError, match=r"one output; use Scalar\(\)\.$"):
        la.predict(collate(random_examples(2, 2)), readout=ClassLogits())
    with pytest.raises(LaplaceLoRAError, match=r"is for classes, and Scalar\(\) reads none"):
        la.predict(collate(random_examples(2, 2)), top_k=2, readout=Scalar())


def test_the_readout_is_inferred_anew_in_every_fit() -> None:
    model = tiny_llama(1)
    la = LaplaceLoRA(model, QUIET).fit([collate(_numbers())])
    assert isinstance(la.readout, Scalar)
    batch = collate(random_examples(2, 2))
    chosen = {f"{key}_{end}": batch[key] for key in ("input_ids", "attention_mask") for end in ("chosen", "rejected")}
    chosen["input_ids_rejected"] = batch["input_ids"].flip(0)
    chosen["attention_mask_rejected"] = batch["attention_mask"].flip(0)
    assert isinstance(la.fit([chosen]).readout, PairwiseReward)


def test_a_readout_that_cannot_be_settled_leaves_no_half_of_it() -> None:
    la = LaplaceLoRA(
        tiny_llama(1), LaplaceConfig(structure="last_layer", include_modules_to_save=False, progress=False)
    )
    for _ in range(2):
        with pytest.raises(LaplaceLoRAError, match="last_layer"):
            la.fit([collate(_numbers())])
    assert "not fitted" in la.summary()


def test_many_effective_parameters_for_few_targets_are_pointed_out() -> None:
    la = LaplaceLoRA(tiny_llama(1), QUIET, Scalar()).fit([collate(_numbers(6))])
    with pytest.warns(UserWarning, match="effective parameters to explain 6 targets"):
        la.tune_prior("evidence")
