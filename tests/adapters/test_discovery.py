"""Every trained parameter is found, or refused by name with what to do about it."""

from collections.abc import Callable

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

import oracles
from engine.support import close, fitted
from laplace_lora import LaplaceConfig, LaplaceLoRA, LaplaceLoRAError
from laplace_lora.adapters import discover_sites
from laplace_lora.errors import UnsupportedAdapterError
from tiny_models import batches, collate, random_examples, tiny_bert


def _base(**changes: object) -> PreTrainedModel:
    settings = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "initializer_range": 0.25,
        "num_labels": 3,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(BertConfig(**{**settings, **changes})).double()


def _wrap(base: nn.Module | None = None, **options: object) -> peft.PeftModel:
    settings = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "r": 2}
    return peft.get_peft_model(base or _base(), peft.LoraConfig(**{**settings, **options})).eval()


def _two_active() -> nn.Module:
    # Without a head: PEFT itself refuses two of them.
    model = _wrap(task_type=None)
    model.add_adapter("second", peft.LoraConfig(target_modules=["query"], r=2))
    model.base_model.set_adapter(["default", "second"])
    return model


def _merged() -> nn.Module:
    model = _wrap()
    model.merge_adapter()
    return model


def _disabled() -> nn.Module:
    model = _wrap()
    model.base_model.disable_adapter_layers()
    return model


def _unfrozen() -> nn.Module:
    model = _wrap()
    model.get_submodule("base_model.model.bert.encoder.layer.1.output.dense").weight.requires_grad_(True)
    return model


def _shared_in_part(start: int) -> nn.Module:
    """Two factors that overlap, the second beginning at a row of the first."""
    model = _wrap()
    first, second = (module for name, module in model.named_modules() if name.endswith("query.lora_A.default"))
    memory = torch.zeros(4, 16, dtype=torch.float64)
    first.weight = nn.Parameter(memory[:3])
    second.weight = nn.Parameter(memory[start : start + 2])
    return model


def _trained_norm() -> nn.Module:
    return _wrap(modules_to_save=["classifier", "bert.encoder.layer.1.output.LayerNorm"])


def _trained_embedding() -> nn.Module:
    return _wrap(modules_to_save=["classifier", "word_embeddings"])


def _ia3() -> nn.Module:
    config = peft.IA3Config(task_type="SEQ_CLS", target_modules=["query", "dense"], feedforward_modules=["dense"])
    return peft.get_peft_model(_base(), config)


def _prompt() -> nn.Module:
    return peft.get_peft_model(_base(), peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))


# What is refused: how it is made, what the message names, and how it ends.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "no PeftModel": (_base, "BertForSequenceClassification", "PeftModel.from_pretrained."),
    "two active adapters": (_two_active, "default, second", "model.set_adapter(name)."),
    "merged": (_merged, "layer.0.attention.self.query", "model.unmerge_adapter() first."),
    "disabled": (_disabled, "layer.0.attention.self.query", "model.enable_adapter_layers()."),
    "trained norm": (_trained_norm, "layer.1.output.LayerNorm", "LaplaceConfig(include_modules_to_save=False)."),
    "trained embedding": (_trained_embedding, "word_embeddings", "LaplaceConfig(include_modules_to_save=False)."),
    "unfrozen base weight": (_unfrozen, "layer.1.output.dense.weight", "or retrain without them."),
    "IA3": (_ia3, "IA3", "train a LoRA adapter."),
    "prompt tuning": (_prompt, "PROMPT_TUNING", "train a LoRA adapter."),
    "shared start": (lambda: _shared_in_part(0), "layer.1.attention.self.query.lora_A", "untie them and retrain."),
    "shared row": (lambda: _shared_in_part(2), "layer.1.attention.self.query.lora_A", "untie them and retrain."),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name_with_a_remedy(kind: str) -> None:
    make, name, remedy = REFUSED[kind]
    with pytest.raises(UnsupportedAdapterError) as caught:
        LaplaceLoRA(make())
    assert name in str(caught.value)
    assert str(caught.value).endswith(remedy)


@pytest.mark.parametrize("make", [_trained_norm, _trained_embedding])
def test_what_is_no_linear_layer_can_be_held_at_its_trained_values(make: Callable[[], nn.Module]) -> None:
    la = LaplaceLoRA(make(), LaplaceConfig(include_modules_to_save=False, progress=False))
    held = next(line for line in la.summary().splitlines() if "held at their trained values" in line)
    assert "classifier" in held
    assert "LayerNorm" in held or "word_embeddings" in held
    assert "trained in full, in the posterior: none" in la.summary()
    la.fit(batches(random_examples(4), 2))
    assert "held at their trained values" in la.summary()


@pytest.mark.parametrize("include_head", [True, False])
def test_every_trainable_parameter_is_at_one_site(include_head: bool) -> None:
    model = _wrap()
    adapter = discover_sites(model, include_head)
    found = [id(p) for site in adapter.sites for p in site.parameters]
    head = {id(p) for name, p in model.named_parameters() if ".modules_to_save." in name}
    expected = {id(p) for p in model.parameters() if p.requires_grad} - (set() if include_head else head)
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert adapter.adapter == "default"
    assert len(adapter.sites) == 8 + include_head
    assert adapter.held_at_map == (() if include_head else ("base_model.model.classifier",))


def test_a_frozen_adapter_is_found_whole() -> None:
    model = _wrap()
    trainable = [site.name for site in discover_sites(model).sites]
    model.requires_grad_(False)
    assert [site.name for site in discover_sites(model).sites] == trainable


def test_names_sizes_and_values_of_sites() -> None:
    model = tiny_bert()
    sites = {site.name: site for site in discover_sites(model).sites}
    a = sites["base_model.model.bert.encoder.layer.0.attention.self.query.lora_A"]
    b = sites["base_model.model.bert.encoder.layer.0.attention.self.query.lora_B"]
    head = sites["base_model.model.classifier"]
    assert a.module == b.module == "base_model.model.bert.encoder.layer.0.attention.self.query"
    assert [(s.out_features, s.in_features, s.trained_in_full) for s in (a, b, head)] == [
        (3, 16, False),
        (16, 3, False),
        (3, 17, True),
    ]
    state = peft.get_peft_model_state_dict(model)
    for site in sites.values():
        values = state[f"{site.name}.weight"]
        if site.bias is not None:
            values = torch.cat([values, state[f"{site.name}.bias"][:, None]], dim=1)
        assert torch.equal(site.weights(), values)


# --- modules that the logits do not depend on ----------------------------------------------------------------


class _Classifier(nn.Module):
    """A small classifier of token sequences, with a layer that may be left out of the answer."""

    def __init__(self, use: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 8)
        self.used, self.aside = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.use = use

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
        x = self.embed(input_ids) * attention_mask[..., None]
        hidden = self.used(x).tanh()
        if self.use == "aside has no effect":
            self.aside(hidden)
        output = type("Output", (), {})()
        output.logits = self.head(hidden.mean(1))
        return output


@pytest.mark.parametrize(
    ("use", "says"),
    [
        ("aside never runs", "did not run"),
        ("aside has no effect", "do not depend on"),
    ],
)
def test_a_module_outside_the_answer_is_refused(use: str, says: str) -> None:
    """Its curvature is no data's: a posterior that covered it would be the prior, or wrong."""
    base = _Classifier(use).double()
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["used", "aside"], r=2)).eval()
    la = LaplaceLoRA(model, LaplaceConfig(progress=False))
    with pytest.raises(UnsupportedAdapterError, match=says) as caught:
        la.fit(batches(random_examples(4), 2))
    assert "base_model.model.aside.lora_" in str(caught.value)
    assert str(caught.value).endswith("retrain without this module.")
    assert not any(module._forward_hooks for module in model.modules())


# --- kinds of LoRA that are covered --------------------------------------------------------------------------


def _renamed() -> peft.PeftModel:
    settings = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=2)
    return peft.get_peft_model(_base(), settings, adapter_name="sentiment").eval()


COVERED: dict[str, Callable[[], peft.PeftModel]] = {
    "rank and alpha patterns": lambda: _wrap(rank_pattern={"query": 4}, alpha_pattern={"value": 32}),
    "rsLoRA": lambda: _wrap(use_rslora=True, r=4),
    "biases of lora_B": lambda: _wrap(lora_bias=True),
    "trained dense layer": lambda: _wrap(modules_to_save=["classifier", "pooler.dense"]),
    "gaussian initialisation": lambda: _wrap(init_lora_weights="gaussian"),
}


def _move(model: peft.PeftModel) -> peft.PeftModel:
    """Move lora_B and biases away from 0."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize("kind", COVERED)
def test_covered_as_the_oracle_has_it(kind: str) -> None:
    model, train, test = _move(COVERED[kind]()), random_examples(5), random_examples(3, seed=9)
    la = fitted(model, train, prior_precision=0.8)
    dense = oracles.dense_posterior(model, train, "kron")
    expected = torch.stack([dense.functional(model, example, 0.8) for example in test])
    close(la.predict(collate(test)).covariance, expected)


def test_the_name_of_the_adapter_does_not_matter() -> None:
    plain, renamed = _move(_wrap()), _move(_renamed())
    sites = [discover_sites(model).sites for model in (plain, renamed)]
    assert [site.name for site in sites[0]] == [site.name for site in sites[1]]
    assert discover_sites(renamed).adapter == "sentiment"
    train, test = random_examples(5), random_examples(3, seed=9)
    predictions = [fitted(model, train).predict(collate(test)) for model in (plain, renamed)]
    assert torch.equal(predictions[0].covariance, predictions[1].covariance)
    keys = [set(fitted(model, train).sample(1)[0]) for model in (plain, renamed)]
    assert keys[0] == keys[1]


def test_an_idle_second_adapter_is_left_alone() -> None:
    """Only the active adapter belongs to the posterior; the other one is frozen and counts as the base."""
    model, train, test = _move(_wrap()), random_examples(5), random_examples(3, seed=9)
    alone = fitted(model, train).predict(collate(test))
    model.add_adapter("idle", peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=3))
    model.set_adapter("default")
    assert discover_sites(model).adapter == "default"
    assert torch.equal(fitted(model, train).predict(collate(test)).covariance, alone.covariance)


def test_a_raw_parameter_is_refused() -> None:
    """LoRA on a parameter (as for mixtures of experts) has factors that no layer is called with."""
    model = _wrap(task_type=None, target_modules=[], target_parameters=["query.weight"])
    with pytest.raises(UnsupportedAdapterError, match=r"layer\.0\.attention\.self\.query.*retrain") as caught:
        LaplaceLoRA(model, LaplaceConfig(progress=False)).fit(batches(random_examples(4), 2))
    assert str(caught.value).endswith(".")


def test_nothing_to_cover_is_refused() -> None:
    model = _wrap(modules_to_save=None, task_type=None, target_modules=["query"])
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.delete_adapter("default")
    with pytest.raises(LaplaceLoRAError, match="check target_modules"):
        discover_sites(model)
