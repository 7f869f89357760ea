"""What each kind of adapter asks for beside equality: what is restored, kept apart, saved, or refused."""

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from adapters.double import double_softmax
from adapters.generic_oracle import hessian, jacobian, matrices, oracle
from adapters.support import DELTA, class_logits, collate, data, examples, fitted, shared
from adapters.variants import ANSWERS, ARCHITECTURES, CLASSES, ROWS, TARGETS, Row, answerer, base_model, classifier
from adapters.variants import moved as with_noise
from engine.support import close
from laplace_lora import AnswerTokens, LaplaceConfig, LaplaceLoRA, LaplaceLoRAError, NextToken, OptionScores
from laplace_lora.errors import UnsupportedAdapterError
from tiny_models import Batch, Example

# PEFT's and transformers' own; and that rows go one by one, of which test_variants.py has a test.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    with double_softmax():
        yield


# --- gradient checkpointing ------------------------------------------------------------------------------------------

CHECKPOINTED = [name for name in ROWS if name.startswith("gradient checkpointing")]


def _layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _state(model: nn.Module) -> list[object]:
    layers = [
        (layer.gradient_checkpointing, vars(layer).get("_gradient_checkpointing_func")) for layer in _layers(model)
    ]
    return [layers, [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointing_is_active_and_left_as_it_was(name: str, training: bool) -> None:
    row = ROWS[name]
    model = row.build().train(training)
    calls = 0

    def count(layer: nn.Module, *_: object) -> None:
        nonlocal calls
        calls += 1
        assert not layer.training, "it would drop out"

    # transformers checkpoints the layer's forward function, around which hooks of the layer itself run once.
    norms = [next(m for m in layer.modules() if "Norm" in type(m).__name__) for layer in _layers(model)]
    for layer, norm in zip(_layers(model), norms, strict=True):
        norm.register_forward_hook(functools.partial(count, layer))
    before = _state(model)
    la = fitted(row, model, "kron")
    batches, backwards = 2, CLASSES - 1
    assert calls == len(norms) * batches * (1 + backwards)
    assert _state(model) == before
    calls = 0
    la.predict(collate(row, data(row)[1]))
    assert calls == len(norms) * (1 + backwards)
    assert _state(model) == before
    # Without it, a layer runs once per batch.
    model.gradient_checkpointing_disable()
    calls = 0
    fitted(row, model, "kron")
    assert calls == len(norms) * batches


def test_checkpointing_is_left_as_it_was_after_an_error() -> None:
    row = ROWS["gradient checkpointing"]
    model = row.build()
    before = _state(model)
    bad = collate(row, data(row)[1])
    bad["input_ids"] = bad["input_ids"] + 10_000
    with pytest.raises((IndexError, LaplaceLoRAError)):
        fitted(row, model, "kron").predict(bad)
    assert _state(model) == before


# --- frozen, several, moved bases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loaded frozen", "all biases", "DoRA", "embedding", "tied", "several adapters"])
def test_loaded_frozen_is_the_same_and_stays_frozen(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    model = (row.trained or row.build)()
    model.save_pretrained(tmp_path, selected_adapters=model.active_adapters, save_embedding_layers=False)
    folder = tmp_path if name != "several adapters" else tmp_path / "second"
    base = base_model("llama", True, tie_word_embeddings=True) if name == "tied" else base_model("bert")
    frozen = peft.PeftModel.from_pretrained(base, folder).eval()
    # Of bias="all", PEFT freezes none of the biases.
    before = [parameter.requires_grad for parameter in frozen.parameters()]
    assert any(before) == (name == "all biases")
    batch = collate(row, data(row)[1])
    expected, found = (fitted(row, m, "exact").predict(batch).covariance for m in (model, frozen))
    close(found, expected, 1e-12)
    assert [parameter.requires_grad for parameter in frozen.parameters()] == before


@pytest.mark.parametrize("frozen", [False, True])
def test_a_bias_that_acts_in_another_way_is_refused(frozen: bool) -> None:
    """It was trained and is saved with the adapter: that it may be frozen now changes nothing."""
    base = base_model("bert")
    base.bert.encoder.layer[1].output.dense = _OddBias(base.bert.encoder.layer[1].output.dense)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], bias="all"))
    if frozen:
        model.requires_grad_(False)
    with pytest.raises(UnsupportedAdapterError, match=r"layer\.1\.output\.dense\.bias.*LoraConfig\(bias='none'\)\.$"):
        LaplaceLoRA(model)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_kind_of_weight_that_is_not_known_is_refused(frozen: bool) -> None:
    """PEFT may come to save weights of other names with an adapter; frozen or not, they were trained."""
    model = classifier("bert")
    layer = model.get_submodule("base_model.model.bert.encoder.layer.1.attention.self.value")
    layer.adapter_layer_names = (*layer.adapter_layer_names, "extra_scale")
    layer.extra_scale = nn.ParameterDict({"default": nn.Parameter(torch.ones(16), requires_grad=not frozen)})
    with pytest.raises(UnsupportedAdapterError, match=r"self\.value\.extra_scale.*or retrain without them\.$"):
        LaplaceLoRA(model)


class _OddBias(nn.Module):
    """A layer whose bias counts twice."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, 2 * self.bias)


def test_the_other_adapter_is_neither_covered_nor_sampled() -> None:
    row = ROWS["several adapters"]
    model = row.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    la = fitted(row, model, "kron")
    (sample,) = la.sample(1)
    peft.set_peft_model_state_dict(model, sample, adapter_name="second")
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if ".second." in key}
    assert model.active_adapters == ["second"]


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_altered_base_has_no_evidence_and_says_what_to_do(start: str) -> None:
    row = ROWS["PiSSA" if start == "pissa" else "OLoRA"]
    la = fitted(row, row.build(), "kron")
    with pytest.raises(LaplaceLoRAError, match=rf"{start}.*tune_prior\('validation', loader\)"):
        la.tune_prior("evidence")
    la.tune_prior("validation", [collate(row, data(row)[1])])


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_a_posterior_over_an_altered_base_is_saved_and_loaded(start: str, tmp_path: Path) -> None:
    """The base on disk is the original one, and PEFT alters it again while it loads the adapter."""
    row = ROWS["PiSSA"]
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=TARGETS["bert"], r=3, init_lora_weights=start)
    model = with_noise(peft.get_peft_model(base_model("bert", dtype=torch.float32), settings)).eval()
    la = fitted(row, model, "kron")
    model.save_pretrained(tmp_path)
    la.save_pretrained(tmp_path)
    torch.manual_seed(99)
    again = peft.PeftModel.from_pretrained(base_model("bert", dtype=torch.float32), tmp_path).eval()
    batch = collate(row, data(row)[1])
    close(LaplaceLoRA.from_pretrained(again, tmp_path).predict(batch).covariance, la.predict(batch).covariance, 1e-4)


@pytest.mark.parametrize("name", ["DoRA", "all biases", "embedding", "tied", "parameter shared by two modules"])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    model = row.build()
    la = fitted(row, model, "kron")
    la.save_pretrained(tmp_path)
    batch = collate(row, data(row)[1])
    loaded = LaplaceLoRA.from_pretrained(row.build(), tmp_path)
    close(loaded.predict(batch).covariance, la.predict(batch).covariance, 1e-12)


# --- layers that see no examples -------------------------------------------------------------------------------------


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


# --- every token of a text -------------------------------------------------------------------------------------------


def _labelled(texts: list[Example], row: Row, side: str) -> Batch:
    """Label all tokens but the first."""
    batch = collate(row, texts, side)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for index, text in enumerate(texts):
        labels[index, 0 if side == "right" else labels.shape[1] - len(text["input_ids"])] = -100
    return {**batch, "labels": labels}


def _log_probability(model: nn.Module, example: Example) -> Tensor:
    ids = example["input_ids"]
    logits = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).logits[0]
    return logits[:-1].log_softmax(-1).gather(1, ids[1:, None]).sum()[None]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["tied", "embedding and output embeddings, not tied", "llama, answers, sdpa"])
def test_next_token_of_the_data(name: str, side: str) -> None:
    """The empirical Fisher is not random: P = sum of g g^T + delta I, g the gradient of a text's log-probability."""
    row = ROWS[name]
    model, (train, test) = row.build(), data(row)
    config = LaplaceConfig(structure="diag", fisher="empirical", prior_precision=DELTA, progress=False)
    la = LaplaceLoRA(model, config, NextToken())
    la.fit([_labelled(train[:3], row, side), _labelled(train[3:], row, side)])
    p = la.predict(_labelled(test, row, side))
    among = matrices(model, _log_probability(model, train[0])[0])

    def gradient(example: Example) -> Tensor:
        return torch.cat([j.flatten() for j in jacobian(model, example, among, _log_probability)])

    precision = sum(gradient(example).square() for example in train) + DELTA
    expected = torch.stack([gradient(example).square() @ (1 / precision) for example in test])
    close(p.covariance, expected[:, None, None])


# --- half precision --------------------------------------------------------------------------------------------------


def _half(name: str, dtype: torch.dtype, answers: bool, **options: object) -> peft.PeftModel:
    """A half-precision base with LoRA in float32 on it, as PEFT makes it."""
    targets = [*TARGETS.get(name, ["q_proj", "v_proj"]), *(["lm_head"] if answers else [])]
    settings = {"target_modules": targets, "task_type": "CAUSAL_LM" if answers else "SEQ_CLS", "r": 3, **options}
    if name == "gpt2":
        settings["fan_in_fan_out"] = True
    # Smaller weights than elsewhere, as those of a trained model: float16 ends at 65504.
    base = base_model(name, answers, "sdpa", dtype, initializer_range=0.1)
    return with_noise(peft.get_peft_model(base, peft.LoraConfig(**settings))).eval()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("structure", ["exact", "kron"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("name", "answers", "options"),
    [("llama", False, {}), ("qwen2", True, {}), ("gpt2", False, {"use_dora": True}), ("bert", False, {"bias": "all"})],
    ids=["llama", "qwen2, answers", "gpt2, DoRA", "bert, all biases"],
)
def test_half_precision_is_near_float32(
    name: str, answers: bool, options: dict[str, object], dtype: torch.dtype, structure: str, side: str
) -> None:
    """A value passes some thirty roundings on its way through two layers, each of eps / 4 or so, up or down.

    They add up to sqrt(30) eps / 4, or 1.4 eps: logits were off by 1.6 eps at most, covariances (products of two
    Jacobians) by 1.1 eps. Allowed are 4 and 8 eps. A mistake (padding that leaks, statistics in half precision) is of
    the order of 1, or grows with the data.
    """
    if side == "left" and name == "bert":
        pytest.skip("an encoder is never padded on the left")
    row = Row(lambda: None, answers=answers, causal=name != "bert")
    half = _half(name, dtype, answers, **options)
    single = copy.deepcopy(half).float()
    eps = torch.finfo(dtype).eps
    batch = collate(row, data(row)[1], side)
    p, reference = (fitted(row, model, structure, side).predict(batch) for model in (half, single))
    assert p.covariance.isfinite().all()
    assert p.probabilities.isfinite().all()
    close(p.mean, reference.mean, 4 * eps)
    close(p.covariance, reference.covariance, 8 * eps)


# --- refusals --------------------------------------------------------------------------------------------------------


class _Small(nn.Module):
    """A classifier with a convolution and PyTorch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
        hidden = self.conv(self.embed(input_ids)[:, None])[:, 0]
        hidden = self.attention(hidden, hidden, hidden)[0]
        output = type("Output", (), {})()
        output.logits = self.head(hidden.mean(1))
        return output


def _small(**options: object) -> peft.PeftModel:
    return peft.get_peft_model(_Small(), peft.LoraConfig(r=2, **options)).eval()


def _experts(target: str, **options: object) -> peft.PeftModel:
    _, settings = ARCHITECTURES["llama"]
    config = hf.MixtralConfig(**settings, num_local_experts=2, num_experts_per_tok=1)
    base = AutoModelForCausalLM.from_config(config)
    settings = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "target_parameters": [target], "r": 2}
    return peft.get_peft_model(base, peft.LoraConfig(**{**settings, **options})).eval()


def _merged() -> peft.PeftModel:
    model = answerer("llama")
    model.merge_adapter()
    return model


def _llama(**options: object) -> peft.PeftModel:
    base = base_model("llama", True, dtype=torch.float32)
    settings = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 2, **options}
    return peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()


PLAIN = "retrain with plain LoRA or, on linear layers, DoRA."
# How it is made, what the message names, how it ends.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "merged": (_merged, r"layers\.0\.self_attn\.q_proj", r"call model.unmerge_adapter\(\) first."),
    "experts": (
        functools.partial(_experts, "experts.gate_up_proj"),
        r"layers\.0\.mlp\.experts.*gate_up_proj",
        "retrain with target_modules.",
    ),
    "DoRA on an embedding": (
        lambda: classifier("bert", target_modules=["word_embeddings"], use_dora=True),
        r"word_embeddings.*DoraEmbeddingVariant",
        PLAIN,
    ),
    "Conv2d": (lambda: _small(target_modules=["conv"]), r"conv.*Conv2d", "retrain with LoRA on linear layers only."),
    "DoRA on Conv2d": (lambda: _small(target_modules=["conv"], use_dora=True), r"conv.*DoraConv2dVariant", PLAIN),
    "MultiheadAttention": (
        lambda: _small(target_modules=["attention"]),
        r"attention.*MultiheadAttention",
        "retrain without this module.",
    ),
    "aLoRA": (lambda: _llama(alora_invocation_tokens=[5]), r"q_proj.*ALora", PLAIN),
    "MiCA": (lambda: _llama(init_lora_weights="mica"), r"q_proj.*MiCA", PLAIN),
    "KaSA": (lambda: _llama(kasa_config=peft.tuners.lora.config.KasaConfig()), r"q_proj.*Kasa", PLAIN),
    "tokens trained in full": (
        lambda: _llama(trainable_token_indices=[5, 6]),
        r"embed_tokens.*TrainableTokens",
        "retrain without it.",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name_with_a_remedy(kind: str) -> None:
    make, name, remedy = REFUSED[kind]
    with pytest.raises(UnsupportedAdapterError, match=rf"(?s){name}.*{remedy}$"):
        LaplaceLoRA(make(), readout=AnswerTokens(ANSWERS) if kind in ("merged", "aLoRA") else None)
