"""Layers that see something which all rows of a batch share: their rows go through one by one."""

from collections.abc import Iterator

import peft
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from adapters.double import double_softmax
from adapters.generic_oracle import hessian, oracle
from adapters.support import DELTA, class_logits, collate, data, examples, fitted, shared
from adapters.variants import ARCHITECTURES, ROWS
from adapters.variants import moved as with_noise
from engine.support import close
from laplace_lora import LaplaceConfig, LaplaceLoRA, OptionScores
from tiny_models import Batch, Example

# PEFT's and transformers' own; and that rows go one by one, of which test_mixing_layers.py has a test.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    with double_softmax():
        yield


@pytest.mark.parametrize("name", ["all biases, norm of positions", "queries shared with positions"])
def test_a_table_of_positions_is_not_taken_for_a_batch(name: str) -> None:
    """Eight relative positions look like a batch of eight, or like one text of eight tokens, three of them padding."""
    row = ROWS[name]
    model, dense = shared(name)
    train, test = data(row)
    config = LaplaceConfig(structure="exact", prior_precision=DELTA, progress=False)
    la = LaplaceLoRA(model, config).fit([collate(row, train)])
    texts, expected = [*test, *examples(row, 5, seed=3)], dense.covariance("exact", DELTA)
    close(la.predict(collate(row, texts)).covariance[: len(test)], expected)
    filler = {"input_ids": torch.ones(8, dtype=torch.long), "labels": torch.tensor(0)}
    short = [index for index, text in enumerate(test) if len(text["input_ids"]) < 8]
    assert short
    for text, covariance in ((test[index], expected[index]) for index in short):
        batch = collate(row, [text, filler])
        close(la.predict({key: value[:1] for key, value in batch.items()}).covariance[0], covariance)


def test_the_module_that_mixes_is_named() -> None:
    row = ROWS["queries shared with positions"]
    with pytest.warns(UserWarning, match=r"layer\.0\.attention\.self\.query_proj\.lora_A.*one by one.*Retrain without"):
        fitted(row, row.build(), "kron")


class _Table(nn.Module):
    """A classifier that normalises its whole table of embeddings before it looks tokens up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(8, 8)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
        hidden = self.mix(self.norm(self.embed.weight)[input_ids].tanh()) * attention_mask[..., None]
        output = type("Output", (), {})()
        output.logits = self.head(hidden.sum(1))
        return output


def test_a_table_with_as_many_rows_as_the_batch() -> None:
    model = peft.get_peft_model(_Table().double(), peft.LoraConfig(target_modules=["mix"], r=2, bias="all"))
    model = with_noise(model).eval()
    row = ROWS["bert, classifier, eager"]
    train, test = examples(row, 8), examples(row, 8, seed=9)
    for text in (*train, *test):
        text["input_ids"] %= 8
    dense = oracle(model, train, test, class_logits)
    la = LaplaceLoRA(model, LaplaceConfig(structure="exact", prior_precision=DELTA, progress=False))
    found = la.fit([collate(row, train)]).predict(collate(row, test))
    close(found.covariance, dense.covariance("exact", DELTA))


class _Experts(nn.Module):
    """A classifier that sends every token to one of two layers, all tokens of a batch together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 8)
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
        tokens, hidden = input_ids.flatten(), self.embed(input_ids).flatten(0, 1)
        result = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            mine = (tokens % 2 == number).nonzero()[:, 0]
            if len(mine):
                result = result.index_add(0, mine, expert(hidden[mine]).tanh())
        result = result.view(*input_ids.shape, -1) * attention_mask[..., None]
        output = type("Output", (), {})()
        output.logits = self.head(result.sum(1))
        return output


@pytest.mark.parametrize("structure", ["exact", "diag", "kron"])
def test_experts_that_see_no_token_of_some_texts(structure: str) -> None:
    model = peft.get_peft_model(_Experts().double(), peft.LoraConfig(target_modules=r".*experts\.\d", r=2))
    model = with_noise(model).eval()
    row = ROWS["bert, classifier, eager"]
    train, test = data(row)
    train[0]["input_ids"] = train[0]["input_ids"] // 2 * 2
    train[1]["input_ids"] = train[1]["input_ids"] // 2 * 2 + 1
    test[2]["input_ids"] = test[2]["input_ids"] // 2 * 2
    dense = oracle(model, train, test, class_logits)
    config = LaplaceConfig(structure=structure, prior_precision=DELTA, progress=False)
    la = LaplaceLoRA(model, config).fit([collate(row, train[:3]), collate(row, train[3:])])
    close(la.predict(collate(row, test)).covariance, dense.covariance(structure, DELTA))


def test_options_go_one_by_one_too() -> None:
    """A multiple-choice encoder whose queries are shared with positions, against batches of one option."""
    torch.manual_seed(3)
    kind, settings = ARCHITECTURES["deberta-v2"]
    base = hf.DebertaV2ForMultipleChoice(kind(**{**settings, "share_att_key": True})).double()
    lora = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query_proj"], modules_to_save=["classifier"], r=2)
    model = with_noise(peft.get_peft_model(base, lora)).eval()
    row = ROWS["bert, classifier, eager"]
    train, test = examples(row, 6), examples(row, 6, seed=9)

    def options(texts: list[Example]) -> Batch:
        batch = {key: value for key, value in collate(row, texts).items() if key != "labels"}
        return {key: value.view(2, 3, -1) for key, value in batch.items()} | {"labels": torch.tensor([0, 2])}

    config = LaplaceConfig(structure="exact", prior_precision=DELTA, progress=False)
    la = LaplaceLoRA(model, config, OptionScores()).fit([options(train)])

    def score(_: nn.Module, example: Example) -> Tensor:
        ids = example["input_ids"][None, None]
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]

    dense = oracle(model, train, test, score)
    rows = [torch.cat(dense.train[start : start + 3]) for start in (0, 3)]
    logits = [torch.cat(dense.train_logits[start : start + 3]) for start in (0, 3)]
    precision = sum(j.T @ hessian(f) @ j for j, f in zip(rows, logits, strict=True))
    precision = precision + DELTA * torch.eye(len(dense.theta), dtype=torch.float64)
    tests = torch.stack([torch.cat(dense.test[start : start + 3]) for start in (0, 3)])
    close(la.predict(options(test)).covariance, tests @ torch.linalg.solve(precision, tests.mT))
