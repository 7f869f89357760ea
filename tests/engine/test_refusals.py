"""What cannot be done is refused before it goes wrong, and every message ends with the remedy."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from engine.support import STRUCTURES, fitted
from laplace_lora import ClassLogits, LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from laplace_lora.errors import MemoryLimitError, NotFittedError, UnsupportedInputError
from tiny_models import Batch, Example, batches, collate, once, random_examples, tiny_bert, tiny_llama

TRAIN = random_examples(6)


def _unfitted(model: torch.nn.Module | None = None, **settings: object) -> LaplaceLoRA:
    return LaplaceLoRA(model or tiny_bert(), LaplaceConfig(**{"progress": False, **settings}))


def _refused(call: Callable[[], object], *phrases: str, remedy: str, kind: type = LaplaceLoRAError) -> str:
    """Check that a call is refused, that the message has the phrases, and that it ends with the remedy."""
    with pytest.raises(LaplaceLoRAError) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, kind)
    for phrase in phrases:
        assert phrase in message
    assert message.endswith(remedy), message
    return message


def _changed(**columns: object) -> list[Batch]:
    """Return two batches, the second with columns replaced."""
    first, second = batches(TRAIN, 3)
    return [first, {**second, **columns}]


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fisher", ["rademacher", "mc"])
def test_exact_from_one_random_row(fisher: str) -> None:
    la = _unfitted(structure="exact", fisher=fisher)
    remedy = "use fisher='exact' or structure='kron'."
    _refused(lambda: la.fit(batches(TRAIN, 3)), f"fisher={fisher!r}", "3 classes", remedy=remedy)
    two = random_examples(4, num_labels=2)
    _unfitted(tiny_bert(2), structure="exact", fisher="rademacher").fit(batches(two, 2))


class _CountingLoader:
    """Batches that are counted as they are read; a length only where one is given."""

    def __init__(self, items: list[Batch]) -> None:
        self.items, self.read = items, 0

    def __iter__(self) -> Iterator[Batch]:
        for item in self.items:
            self.read += 1
            yield item


class _SizedLoader(_CountingLoader):
    def __len__(self) -> int:
        return len(self.items)


def test_exact_above_its_memory_limit_reads_one_batch_and_says_how_many_bytes() -> None:
    loader = _SizedLoader(batches(TRAIN, 2))
    la = _unfitted(structure="exact", memory_limit_bytes=20_000)
    remedy = "fit fewer examples, use structure='kron', or raise LaplaceConfig(memory_limit_bytes=...)."
    message = _refused(lambda: la.fit(loader), "the limit is 20000", "12 rows", remedy=remedy, kind=MemoryLimitError)
    assert loader.read == 1
    needed = int(re.search(r"needs (\d+) bytes", message).group(1))
    # What it names is what it then asks for: that many bytes are enough, one fewer are not.
    with pytest.raises(MemoryLimitError):
        fitted(tiny_bert(), TRAIN, size=2, structure="exact", memory_limit_bytes=needed - 1)
    fitted(tiny_bert(), TRAIN, size=2, structure="exact", memory_limit_bytes=needed)


def test_the_memory_limit_counts_what_is_really_held() -> None:
    """The number of bytes named covers rows and Gram matrices in the dtype that they have."""
    la = fitted(tiny_bert(), TRAIN, structure="exact")
    la.predict(collate(TRAIN))
    held = la.posterior.nbytes + sum(gram.nbytes for gram in la.posterior.grams())
    with pytest.raises(MemoryLimitError):
        fitted(tiny_bert(), TRAIN, structure="exact", memory_limit_bytes=held - 1)


def test_examples_that_the_loader_will_not_draw_are_not_counted() -> None:
    """A sampler of four examples of a large data set: what is needed for four is enough."""
    large = TRAIN * 50
    chosen = SubsetRandomSampler([0, 1, 2, 3], generator=torch.Generator().manual_seed(0))
    loader = DataLoader(large, batch_size=2, sampler=chosen, collate_fn=collate)
    la = fitted(tiny_bert(), TRAIN[:4], structure="exact")
    _unfitted(structure="exact", memory_limit_bytes=8 * la.posterior.nbytes).fit(loader)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_stream_without_a_length_is_no_error(structure: str) -> None:
    """A torch loader over an iterable data set has a __len__ that raises."""

    class Stream(IterableDataset[Example]):
        def __iter__(self) -> Iterator[Example]:
            return iter(TRAIN)

    la = _unfitted(structure=structure).fit(DataLoader(Stream(), batch_size=4, collate_fn=collate))
    assert "6 examples" in la.summary()


def test_exact_without_a_known_length_stops_where_the_limit_is_reached() -> None:
    loader = _CountingLoader(batches(TRAIN * 10, 2))
    la = _unfitted(structure="exact", memory_limit_bytes=100_000)
    _refused(lambda: la.fit(loader), "bytes", remedy="LaplaceConfig(memory_limit_bytes=...).", kind=MemoryLimitError)
    assert 1 < loader.read < len(loader.items)


def test_prior_precisions_of_other_groups() -> None:
    with pytest.raises(
        LaplaceLoRAError, match=r"misses base_model.*classifier.*names head.*; give exactly: base_model"
    ):
        _unfitted(prior_groups="module", prior_precision={"head": 1.0})
    remedy = "set prior_groups='role', 'module' or 'matrix', or give one float."
    _refused(lambda: _unfitted(prior_precision={"head": 1.0}), "prior_groups='global'", remedy=remedy)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_precisions(value: float) -> None:
    _refused(lambda: _unfitted(prior_precision=value), "prior_precision", remedy="give a number above 0.")
    _refused(lambda: _unfitted(noise_variance=value), "noise_variance", remedy="give a number above 0.")


def test_last_layer_without_a_head() -> None:
    la_of = lambda: _unfitted(structure="last_layer", include_modules_to_save=False)  # noqa: E731
    _refused(la_of, remedy="use structure='kron', or include_modules_to_save=True.")


# --- data ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_loader_without_batches(structure: str) -> None:
    remedy = "check the data, or make a new generator for every fit."
    _refused(lambda: _unfitted(structure=structure).fit([]), "no batch", remedy=remedy)


# What reads the data twice refuses generators: test_further_passes.py.
@pytest.mark.parametrize("structure", [name for name in STRUCTURES if name != "ekfac"])
def test_a_generator_that_was_used_up(structure: str) -> None:
    generator, la = once(batches(TRAIN, 3)), _unfitted(structure=structure)
    la.fit(generator)
    remedy = "make a new generator for every fit."
    _refused(lambda: la.fit(generator), remedy=remedy)
    _refused(lambda: la.predict(collate(TRAIN)), remedy="call fit(loader) first.", kind=NotFittedError)


@pytest.mark.parametrize("first", [True, False])
def test_labels_in_some_batches(first: bool) -> None:
    pair = batches(TRAIN, 3)
    pair[0 if first else 1].pop("labels")
    _refused(lambda: _unfitted().fit(pair), remedy="give labels with all or none.", kind=UnsupportedInputError)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 3]), torch.tensor([0, -100, 1]), torch.tensor([0.0, 1.0, 2.0])])
def test_labels_out_of_range(labels: torch.Tensor) -> None:
    remedy = "check the label column."
    _refused(lambda: _unfitted().fit(_changed(labels=labels)), "from 0 to 2", remedy=remedy, kind=UnsupportedInputError)
    la = _unfitted().fit(batches(TRAIN, 3))
    _refused(lambda: la.tune_prior("validation", _changed(labels=labels)), "from 0 to 2", remedy=remedy)


def test_a_column_that_is_no_tensor() -> None:
    remedy = "remove that column or collate it."
    _refused(lambda: _unfitted().fit(_changed(text=["a", "b", "c"])), "'text' is a list", remedy=remedy)
    la = _unfitted().fit(batches(TRAIN, 3))
    _refused(lambda: la.predict({**collate(TRAIN), "text": "abc"}), "'text' is a str", remedy=remedy)


def test_batches_that_are_no_mappings_or_disagree() -> None:
    tensors = collate(TRAIN[:3])
    loader = [(tensors["input_ids"], tensors["labels"])]
    _refused(lambda: _unfitted().fit(loader), "is a tuple", remedy="use a Hugging Face collator.")  # type: ignore[arg-type]
    _refused(
        lambda: _unfitted().fit(_changed(labels=torch.tensor([0, 1]))), "labels (2,)", remedy="check the collator."
    )
    only_labels = [{"labels": tensors["labels"]}]
    _refused(lambda: _unfitted().fit(only_labels), "labels (3,)", remedy="check the collator.")


def test_left_padding_of_an_encoder() -> None:
    loader = batches(TRAIN, 3, side="left")
    remedy = "set tokenizer.padding_side='right'."
    _refused(lambda: _unfitted().fit(loader), "padded on the left", remedy=remedy, kind=UnsupportedInputError)
    la = _unfitted().fit(batches(TRAIN, 3))
    _refused(lambda: la.predict(loader[0]), "padded on the left", remedy=remedy)
    _unfitted(tiny_llama()).fit(loader)


def test_an_example_without_tokens() -> None:
    batch = collate(TRAIN[:3])
    batch["attention_mask"][1] = 0
    _refused(lambda: _unfitted().fit([batch]), "attention_mask all 0", remedy="remove it from the data.")


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(value: float, structure: str) -> None:
    model = tiny_bert()
    la = _unfitted(model, structure=structure)
    bias = next(p for name, p in model.named_parameters() if name.endswith("modules_to_save.default.bias"))
    bias.data[1] = value
    name = "classifier.modules_to_save.default.bias"
    remedy = "if it overflows."
    _refused(lambda: la.fit(batches(TRAIN, 3)), "not finite", name, remedy=remedy, kind=UnsupportedInputError)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_logits_that_are_not_finite_in_predict(structure: str) -> None:
    """A prediction of NaN is no prediction: refused, as in fit."""
    model = tiny_bert()
    la = _unfitted(model, structure=structure).fit(batches(TRAIN, 3))
    bias = next(p for name, p in model.named_parameters() if name.endswith("modules_to_save.default.bias"))
    bias.data[1] = float("nan")
    _refused(lambda: la.predict(collate(TRAIN)), "not finite", remedy=".")


@pytest.mark.parametrize("fisher", ["rademacher", "mc"])
def test_one_pass_without_token_ids(fisher: str) -> None:
    model = tiny_bert()
    embedding = model.get_input_embeddings()
    loader = [
        {"inputs_embeds": embedding(b["input_ids"]).detach(), "attention_mask": b["attention_mask"]}
        for b in batches(TRAIN, 3)
    ]
    _unfitted(model).fit(loader)
    _refused(lambda: _unfitted(model, fisher=fisher).fit(loader), "no input_ids", remedy="use fisher='exact'.")


def test_one_logit() -> None:
    la = LaplaceLoRA(tiny_bert(num_labels=1), LaplaceConfig(progress=False), ClassLogits())
    _refused(lambda: la.fit(batches(TRAIN, 3)), "one logit", remedy="or likelihood='gaussian'.")


# --- order of calls ------------------------------------------------------------------------------------------


def test_before_fit() -> None:
    la = _unfitted()
    calls: list[Callable[[], object]] = [
        lambda: la.predict(collate(TRAIN)),
        lambda: la.predict_dataset(batches(TRAIN, 3)),
        la.log_marginal_likelihood,
        lambda: la.tune_prior("evidence"),
        lambda: la.tune_prior("validation", batches(TRAIN, 3)),
        lambda: la.sample(1),
    ]
    for call in calls:
        _refused(call, remedy="call fit(loader) first.", kind=NotFittedError)


def test_evidence_without_labels() -> None:
    bare = [{"input_ids": example["input_ids"]} for example in TRAIN]
    la = fitted(tiny_bert(), bare)
    for call in (la.log_marginal_likelihood, lambda: la.tune_prior("evidence")):
        _refused(call, "no labels", remedy="fit with labels.", kind=NotFittedError)


def test_validation_without_labels_or_data() -> None:
    la = fitted(tiny_bert(), TRAIN)
    bare = [{"input_ids": example["input_ids"]} for example in TRAIN]
    _refused(lambda: la.tune_prior("validation", batches(bare, 3)), remedy="give labelled data.")
    _refused(lambda: la.tune_prior("validation", []), "no batch", remedy="check the data.")
    usage = "tune_prior('validation', loader) or tune_prior('cross_fit', folds)."
    _refused(lambda: la.tune_prior("validation"), remedy=usage)
    _refused(lambda: la.tune_prior("evidence", batches(TRAIN, 3)), remedy=usage)
    _refused(lambda: la.tune_prior("guess"), "'guess'", remedy=usage)  # type: ignore[arg-type]
    assert la.prior_precision == 1.0


def test_nothing_to_predict_or_draw() -> None:
    la = fitted(tiny_bert(), TRAIN)
    _refused(lambda: la.predict_dataset([]), "no examples", remedy="check the data loader.")
    _refused(lambda: la.sample(0), "0 adapters", remedy="give n of at least 1.")
