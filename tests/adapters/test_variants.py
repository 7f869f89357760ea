"""What each kind of adapter asks for beside equality: what is restored, kept apart, saved, or refused."""

import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from adapters.double import double_softmax
from adapters.generic_oracle import jacobian, matrices
from adapters.support import DELTA, collate, data, fitted
from adapters.variants import CLASSES, ROWS, TARGETS, Row, base_model, classifier
from adapters.variants import moved as with_noise
from engine.support import close
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError, NextToken
from laplace_lora.errors import UnsupportedAdapterError
from tiny_models import Batch, Example

# PEFT's and transformers' own; and that rows go one by one, of which test_mixing_layers.py has a test.
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
