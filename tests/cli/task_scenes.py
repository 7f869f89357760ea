"""Tiny base models with tokenizers that know the tasks' answers, and copies of the tasks; as fixtures."""

import warnings
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertModel, LlamaForCausalLM, PreTrainedTokenizerFast

from cli.folders import WORDS, _bert_config, _llama_config, bert_tokenizer, run
from tasks.hub_copies import write_copy

LETTERS = tuple("ABCDEF")
CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} {{ strftime_now('%Y') }} red"


def task_tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
    words = ("<s>", "</s>", "<unk>", *WORDS, *LETTERS, "False", "True", ".", ":", "_")
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )
    if chat:
        made.chat_template = CHAT
    return made


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_copy(tmp_path_factory.mktemp("copies"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders of a tiny Llama with a chat template, and of a tiny BERT."""
    root = tmp_path_factory.mktemp("bases")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        config = _llama_config()
        config.vocab_size, config.max_position_embeddings = len(task_tokenizer()), 512
        LlamaForCausalLM(config).save_pretrained(root / "llama")
        task_tokenizer(chat=True).save_pretrained(root / "llama")
        encoder = _bert_config()
        encoder.max_position_embeddings = 128
        BertModel(encoder).save_pretrained(root / "bert")
        bert_tokenizer().save_pretrained(root / "bert")
    return {"llama": root / "llama", "bert": root / "bert"}


def run_well(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return str(result.stdout)
