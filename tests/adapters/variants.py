"""The table of adapters: every architecture, every kind of LoRA and everything trained beside it, at a tiny size.

A row builds one PEFT model, the same at every call. ``ROWS`` are supported, which means equal to the dense oracle;
``REFUSED`` are refused by name.
"""

import dataclasses
import functools
import tempfile
import warnings
from collections.abc import Callable

import peft
import torch
import transformers as hf
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from adapters.double import compute_in_double
from laplace_lora import AnswerTokens, ClassLogits
from laplace_lora.readouts import Readout

VOCAB, CLASSES = 50, 3
#: Tokens of the answers, where a language model answers.
ANSWERS = (7, 31, 12)


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind of adapter.

    Attributes:
        build: Makes the model.
        answers: Whether it is a language model that answers with one of three tokens; else a classifier.
        causal: Whether padding may be on the left.
        pad: The padding token.
        pads_inside: Whether the padding token is to occur as a real token, too.
        trained: The same model with its adapter trainable, if ``build`` gives a frozen one.
        short: Whether one structure is enough, because another row differs in the attention kernel alone.
        mixes: Whether a layer sees something that the rows of a batch share, so that they go one by one.
    """

    build: Callable[[], peft.PeftModel]
    answers: bool = False
    causal: bool = False
    pad: int = 0
    pads_inside: bool = False
    trained: Callable[[], peft.PeftModel] | None = None
    short: bool = False
    mixes: bool = False

    @property
    def readout(self) -> Readout:
        """How logits are read."""
        return AnswerTokens(ANSWERS) if self.answers else ClassLogits()


# --- base models -----------------------------------------------------------------------------------------------------

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.25,
    "num_labels": CLASSES,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 1, "head_dim": 8}
_WINDOW = {**_GROUPED, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}

ARCHITECTURES: dict[str, tuple[type, dict[str, object]]] = {
    "llama": (hf.LlamaConfig, _GROUPED),
    "qwen2": (hf.Qwen2Config, {key: value for key, value in _GROUPED.items() if key != "head_dim"}),
    "qwen3": (hf.Qwen3Config, _GROUPED),
    "mistral": (hf.MistralConfig, {**_GROUPED, "sliding_window": 4}),
    "gemma": (hf.GemmaConfig, _GROUPED),
    # Logits of the attention and of the head are capped, low enough to bend.
    "gemma2": (
        hf.Gemma2Config,
        {**_WINDOW, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (hf.Gemma3TextConfig, {**_WINDOW, "query_pre_attn_scalar": 8}),
    "gpt2": (
        hf.GPT2Config,
        {
            "vocab_size": VOCAB,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": 32,
            "initializer_range": 0.25,
            "num_labels": CLASSES,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
        },
    ),
    "bert": (hf.BertConfig, _SIZES),
    # Positions are counted from the padding token's number on.
    "roberta": (hf.RobertaConfig, {**_SIZES, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}),
    "deberta-v2": (
        hf.DebertaV2Config,
        {
            **_SIZES,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 4,
            "norm_rel_ebd": "layer_norm",
            "pooler_hidden_size": 16,
        },
    ),
    "albert": (hf.AlbertConfig, {**_SIZES, "num_hidden_layers": 3, "embedding_size": 8}),
}
ENCODERS = ("bert", "roberta", "deberta-v2", "albert")
#: transformers has no other attention for them.
EAGER_ONLY = ("deberta-v2", "gemma2")
PAD = {"roberta": 1}
#: Where LoRA goes in a classifier.
TARGETS = {
    "gpt2": ["c_attn"],
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "deberta-v2": ["query_proj", "value_proj"],
    "albert": ["query", "value"],
}

_DEBERTA = {"task_type": "SEQ_CLS", "target_modules": TARGETS["deberta-v2"]}


def base_model(
    name: str, answers: bool = False, attention: str = "eager", dtype: torch.dtype = torch.float64, **changes: object
) -> nn.Module:
    """Make a base model that computes in double precision throughout, if that is its dtype."""
    kind, settings = ARCHITECTURES[name]
    auto = AutoModelForCausalLM if answers else AutoModelForSequenceClassification
    torch.manual_seed(3)
    model = auto.from_config(kind(**{**settings, **changes}), attn_implementation=attention).to(dtype)
    return compute_in_double(model) if dtype == torch.float64 else model


def wrapped(base: nn.Module, adapter_name: str = "default", **options: object) -> peft.PeftModel:
    """Put LoRA on a model and move everything trained away from where it starts."""
    settings = {"r": 3, "lora_alpha": 5, "lora_dropout": 0.1, **options}
    with warnings.catch_warnings():
        # PEFT warns of tied embeddings, of biases that cannot be merged, and of a conversion for Conv1D.
        warnings.simplefilter("ignore")
        return moved(peft.get_peft_model(base, peft.LoraConfig(**settings), adapter_name=adapter_name)).eval()


def moved(model: peft.PeftModel, size: float = 0.2) -> peft.PeftModel:
    """Add noise to all trained weights."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.add_((size * noise).to(parameter))
    return model


def classifier(name: str, attention: str = "eager", **options: object) -> peft.PeftModel:
    """LoRA on queries and values of a classifier, whose head is trained in full."""
    defaults = {"task_type": "SEQ_CLS", "target_modules": TARGETS.get(name, ["q_proj", "v_proj"])}
    if name == "gpt2":
        defaults["fan_in_fan_out"] = True
    return wrapped(base_model(name, attention=attention), **{**defaults, **options})


def answerer(name: str, attention: str = "eager", tied: bool | None = None, **options: object) -> peft.PeftModel:
    """LoRA on queries, values and output embeddings of a language model."""
    targets = ["c_attn", "lm_head"] if name == "gpt2" else ["q_proj", "v_proj", "lm_head"]
    defaults = {"task_type": "CAUSAL_LM", "target_modules": targets, "r": 8, "lora_alpha": 16}
    changes = {} if tied is None else {"tie_word_embeddings": tied}
    return wrapped(base_model(name, True, attention, **changes), **{**defaults, **options})


# --- rows of their own -----------------------------------------------------------------------------------------------


def _second_active() -> peft.PeftModel:
    model = classifier("bert", r=2)
    second = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=3, lora_alpha=5)
    model.add_adapter("second", second)
    model.set_adapter("second")
    return moved(model).eval()


def _checkpointed(name: str, build: Callable[..., peft.PeftModel]) -> peft.PeftModel:
    model = build(name)
    model.gradient_checkpointing_enable()
    return model


def _shared_parameter() -> peft.PeftModel:
    model = classifier("bert")
    first, second = (module for name, module in model.named_modules() if name.endswith("query.lora_A.default"))
    second.weight = first.weight
    return model


def _in_single(name: str, **options: object) -> peft.PeftModel:
    """An adapter whose initialisation PEFT computes in float32 only; in float64 from there on."""
    base = base_model(name, dtype=torch.float32)
    model = wrapped(base, task_type="SEQ_CLS", target_modules=TARGETS[name], **options)
    return compute_in_double(model.double())


def _frozen() -> peft.PeftModel:
    with tempfile.TemporaryDirectory() as folder:
        classifier("bert").save_pretrained(folder)
        return peft.PeftModel.from_pretrained(base_model("bert"), folder).eval()


def _tied(**options: object) -> peft.PeftModel:
    settings = {"ensure_weight_tying": True, "target_modules": ["embed_tokens", "lm_head", "q_proj"], "r": 3}
    return answerer("llama", tied=True, **{**settings, **options})


def _table() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for name in ARCHITECTURES:
        causal, pad = name not in ENCODERS, PAD.get(name, 0)
        for attention in ("eager",) if name in EAGER_ONLY else ("eager", "sdpa"):
            short = attention == "sdpa"
            build = functools.partial(classifier, name, attention)
            rows[f"{name}, classifier, {attention}"] = Row(build, causal=causal, pad=pad, short=short)
            if causal:
                build = functools.partial(answerer, name, attention)
                rows[f"{name}, answers, {attention}"] = Row(build, answers=True, causal=True, short=short)

    def bert(**options: object) -> Callable[[], peft.PeftModel]:
        return functools.partial(classifier, "bert", **options)

    def gpt2(**options: object) -> Callable[[], peft.PeftModel]:
        return functools.partial(classifier, "gpt2", **options)

    def llama(**options: object) -> Callable[[], peft.PeftModel]:
        return functools.partial(answerer, "llama", **options)

    def deberta(share_att_key: bool = False, **options: object) -> Callable[[], peft.PeftModel]:
        return lambda: wrapped(base_model("deberta-v2", share_att_key=share_att_key), **{**_DEBERTA, **options})

    embedding = ["word_embeddings", "value"]
    everywhere = ["embed_tokens", "q_proj", "lm_head"]
    rows |= {
        # Queries and keys see the texts, and once per batch the embeddings of relative positions.
        "queries shared with positions": Row(
            deberta(target_modules=["query_proj", "key_proj"], share_att_key=True), mixes=True
        ),
        "keys of positions": Row(deberta(target_modules=["pos_key_proj", "pos_query_proj"]), mixes=True),
        "all biases, norm of positions": Row(deberta(bias="all"), mixes=True),
        "embedding of absolute positions": Row(bert(target_modules=["position_embeddings", "value"]), mixes=True),
        "rsLoRA": Row(bert(use_rslora=True, r=4)),
        "rank and alpha patterns": Row(bert(rank_pattern={"query": 4}, alpha_pattern={"value": 32})),
        "gaussian initialisation": Row(bert(init_lora_weights="gaussian")),
        "all linear layers": Row(bert(target_modules="all-linear")),
        "another name": Row(bert(adapter_name="sentiment")),
        "several adapters": Row(_second_active),
        "loaded frozen": Row(_frozen, trained=bert()),
        "parameter shared by two modules": Row(_shared_parameter),
        "DoRA": Row(bert(use_dora=True, lora_dropout=0.0)),
        "DoRA with dropout": Row(bert(use_dora=True)),
        "DoRA with LoRA's biases": Row(bert(use_dora=True, bias="lora_only")),
        "DoRA on Conv1D": Row(gpt2(use_dora=True), causal=True),
        "DoRA on output embeddings": Row(llama(use_dora=True), answers=True, causal=True),
        "biases of lora_B": Row(bert(lora_bias=True)),
        "biases of lora_B, Conv1D": Row(gpt2(lora_bias=True), causal=True),
        "biases of lora_B, output embeddings": Row(llama(lora_bias=True), answers=True, causal=True),
        "LoRA's biases": Row(bert(bias="lora_only")),
        "all biases": Row(bert(bias="all")),
        "all biases, Conv1D": Row(gpt2(bias="all"), causal=True),
        "embedding": Row(bert(target_modules=embedding), pads_inside=True),
        "embedding, rsLoRA": Row(bert(target_modules=embedding, use_rslora=True)),
        "embedding of token types": Row(bert(target_modules=["token_type_embeddings", "value"])),
        "embedding, RoBERTa": Row(functools.partial(classifier, "roberta", target_modules=embedding), pad=1),
        "embedding, Llama": Row(
            functools.partial(classifier, "llama", target_modules=["embed_tokens", "v_proj"]), causal=True
        ),
        "embedding, Gemma 3": Row(
            functools.partial(classifier, "gemma3", target_modules=["embed_tokens", "v_proj"]), causal=True
        ),
        "embedding, GPT-2": Row(gpt2(target_modules=["wte", "wpe", "c_attn"]), causal=True),
        "embedding and output embeddings, not tied": Row(
            llama(tied=False, target_modules=everywhere, r=3), answers=True, causal=True
        ),
        "embedding and output embeddings of a tied model": Row(
            llama(tied=True, target_modules=everywhere, r=3), answers=True, causal=True
        ),
        "tied": Row(_tied, answers=True, causal=True),
        "tied, scaled": Row(
            functools.partial(answerer, "gemma3", tied=True, ensure_weight_tying=True, target_modules=everywhere, r=3),
            answers=True,
            causal=True,
        ),
        "trained dense layer": Row(bert(modules_to_save=["classifier", "pooler.dense"])),
        "trained output embeddings": Row(
            llama(tied=False, target_modules=["q_proj"], modules_to_save=["lm_head"]), answers=True, causal=True
        ),
        "gradient checkpointing": Row(functools.partial(_checkpointed, "llama", classifier), causal=True),
        "gradient checkpointing, answers": Row(
            functools.partial(_checkpointed, "qwen2", answerer), answers=True, causal=True
        ),
        "gradient checkpointing, GPT-2": Row(functools.partial(_checkpointed, "gpt2", classifier), causal=True),
        "gradient checkpointing, BERT": Row(functools.partial(_checkpointed, "bert", classifier)),
        "gradient checkpointing, DoRA": Row(
            functools.partial(_checkpointed, "llama", functools.partial(classifier, use_dora=True)), causal=True
        ),
        "gradient checkpointing, tied": Row(
            functools.partial(_checkpointed, "llama", lambda _: _tied()), answers=True, causal=True
        ),
        "PiSSA": Row(functools.partial(_in_single, "bert", init_lora_weights="pissa")),
        "OLoRA": Row(functools.partial(_in_single, "bert", init_lora_weights="olora")),
    }
    return rows


ROWS = _table()
