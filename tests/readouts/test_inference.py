"""Which readout is taken when none is given, and which data are asked about."""

from collections.abc import Iterator

import pytest
import torch

from engine.support import close
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from laplace_lora.errors import NotFittedError
from laplace_lora.readouts import (
    AnswerTokens,
    ClassLogits,
    NextToken,
    OptionScores,
    PairwiseReward,
    Readout,
    Scalar,
)
from readouts.models import collate_options, language_model, multiple_choice, option_examples, regression
from readouts.support import fit
from tiny_models import Batch, batches, collate, once, random_examples, tiny_bert, tiny_gpt2, tiny_llama

LABELLED = random_examples(6, 1)


def values() -> Batch:
    return collate(LABELLED) | {"labels": torch.arange(6).double()}


def without_labels(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key != "labels"}


def tokens() -> Batch:
    batch = collate(LABELLED)
    return batch | {"labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def options(completion: bool = True) -> Batch:
    return collate_options(option_examples((2, 3, 2)), completion=completion)


def pair_table() -> Batch:
    return {key: value.view(3, 2, -1) for key, value in without_labels(collate(LABELLED)).items()}


def pair_keys() -> Batch:
    batch = without_labels(collate(LABELLED))
    return {
        f"{k}_{end}": v[at] for k, v in batch.items() for end, at in (("chosen", slice(3)), ("rejected", slice(3, 6)))
    }


@pytest.mark.parametrize(
    ("build", "settings", "kind"),
    [
        (lambda: tiny_bert(3), {}, ClassLogits),
        (lambda: tiny_llama(3), {}, ClassLogits),
        (lambda: tiny_gpt2(2), {}, ClassLogits),
        (multiple_choice, {}, OptionScores),
        # As before there was Scalar: the configuration says that outputs are real numbers.
        (regression, {"likelihood": "gaussian"}, Scalar),
    ],
)
def test_from_the_model_alone(build: object, settings: dict[str, object], kind: type[Readout]) -> None:
    assert type(LaplaceLoRA(build(), LaplaceConfig(**settings)).readout) is kind


@pytest.mark.parametrize(
    ("build", "batch", "kind"),
    [
        (regression, values, Scalar),
        (lambda: regression("llama"), values, Scalar),
        (regression, pair_table, PairwiseReward),
        (regression, pair_keys, PairwiseReward),
        (lambda: regression("llama"), lambda: pair_table() | {"labels": torch.tensor([0, 1, 0])}, PairwiseReward),
        (lambda: language_model("llama"), tokens, NextToken),
        (lambda: language_model("gpt2"), options, OptionScores),
    ],
)
def test_from_the_first_batch(build: object, batch: object, kind: type[Readout]) -> None:
    la = LaplaceLoRA(build(), LaplaceConfig(progress=False))
    with pytest.raises(NotFittedError, match=r"call fit\(loader\), or give readout="):
        _ = la.readout
    assert "not fitted" in la.summary()
    la.fit(once([batch(), batch()]))
    assert type(la.readout) is kind
    assert la.training is not None
    assert la.training.examples == 2 * (6 if kind in (Scalar, NextToken) else 3)
    assert kind.name in la.summary()


@pytest.mark.parametrize(
    ("build", "batch", "remedy"),
    [
        (lambda: language_model("llama"), lambda: collate(LABELLED), r"give the tokens .* AnswerTokens\.of_words\("),
        (
            lambda: language_model("llama"),
            lambda: without_labels(tokens()),
            r"AnswerTokens\.of_words\(tokenizer, words",
        ),
        (regression, lambda: without_labels(values()), r"give readout=PairwiseReward\(\) or readout=Scalar\(\)"),
    ],
)
def test_ambiguous_data(build: object, batch: object, remedy: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=remedy):
        LaplaceLoRA(build(), LaplaceConfig(progress=False)).fit([batch()])


def test_an_empty_loader() -> None:
    with pytest.raises(LaplaceLoRAError, match="make a new generator for every fit"):
        LaplaceLoRA(regression(), LaplaceConfig(progress=False)).fit(iter([]))


class _Counted:
    """A loader that counts how often it is read, and knows its length."""

    def __init__(self, items: list[Batch]) -> None:
        self.items, self.reads, self.given = items, 0, 0
        self.dataset = range(sum(len(item["input_ids"]) for item in items))

    def __iter__(self) -> Iterator[Batch]:
        self.reads += 1
        for item in self.items:
            self.given += 1
            yield item

    def __len__(self) -> int:
        return len(self.items)


def test_the_loader_is_read_once_and_whole() -> None:
    examples = [{**example, "labels": torch.tensor(float(i))} for i, example in enumerate(LABELLED)]
    loader = _Counted(batches(examples, 2))
    la = LaplaceLoRA(regression(), LaplaceConfig(progress=False)).fit(loader)
    assert (loader.reads, loader.given) == (1, 3)
    named = fit(regression(), Scalar(), batches(examples, 2))
    close(la.predict(collate(examples)).covariance, named.predict(collate(examples)).covariance)
    assert la.training.examples == 6


def test_memory_is_refused_by_the_loader_s_length_here_too() -> None:
    """The number of examples to come is known although the first batch was looked at."""
    examples = [{**example, "labels": torch.tensor(1.0)} for example in LABELLED]
    config = LaplaceConfig(progress=False, structure="exact", memory_limit_bytes=12_000)
    loader = _Counted(batches(examples, 1))
    with pytest.raises(LaplaceLoRAError, match="for 6 rows"):
        LaplaceLoRA(regression(), config).fit(loader)
    assert loader.given == 1


def test_a_readout_settled_by_data_stays() -> None:
    la = LaplaceLoRA(regression(), LaplaceConfig(progress=False)).fit([values()])
    la.fit([without_labels(values())])
    assert type(la.readout) is Scalar


def test_a_given_readout_is_taken() -> None:
    la = LaplaceLoRA(language_model("llama"), LaplaceConfig(progress=False), readout=AnswerTokens([3, 4]))
    assert type(la.readout) is AnswerTokens
    la.fit([without_labels(collate(LABELLED))])
    assert type(LaplaceLoRA(tiny_bert(1), readout=PairwiseReward()).readout) is PairwiseReward
