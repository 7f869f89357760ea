"""Real folders of tiny models, adapters, tokenizers and data files, made without any network."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner, Result

from laplace_lora import cli

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
POSTERIOR_CONFIG, POSTERIOR_WEIGHTS = "posterior_config.json", "posterior.safetensors"
TRAINING_CONFIG = "training_config.json"

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# fmt: off
WORDS = (
    "the", "a", "film", "was", "is", "good", "bad", "dull", "bright", "slow", "fast", "very", "not", "and", "but",
    "food", "service", "place", "story", "plot", "acting", "who", "what", "where", "when", "why", "yes", "no", "one",
    "two", "three", "red", "green", "blue",
)
# fmt: on
POSITIONS = 24
MANY = 150


@dataclasses.dataclass(frozen=True)
class Folders:
    """What the command line is pointed at.

    Attributes:
        root: Holds everything.
        bert: A BERT without a classification head.
        llama: A Llama without one; its tokenizer has no padding token.
        two: BERT adapter of two classes; no tokenizer of its own.
        three: The same of three.
        many: The same of 150.
        llama_three: Llama adapter of three classes.
        train: 24 labelled rows, JSONL, two classes.
        test: 12 other ones, CSV.
    """

    root: Path

    bert = property(lambda self: self.root / "bert")
    llama = property(lambda self: self.root / "llama")
    two = property(lambda self: self.root / "two")
    three = property(lambda self: self.root / "three")
    many = property(lambda self: self.root / "many")
    llama_three = property(lambda self: self.root / "llama-three")
    train = property(lambda self: self.root / "train.jsonl")
    test = property(lambda self: self.root / "test.csv")


def build(root: Path) -> Folders:
    """Make every folder and file."""
    folders = Folders(root)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        _base(folders.bert, BertModel(_bert_config()), bert_tokenizer())
        _base(folders.llama, LlamaModel(_llama_config()), llama_tokenizer())
        for folder, classes in ((folders.two, 2), (folders.three, 3), (folders.many, MANY)):
            save_adapter(folder, folders.bert, classes, targets=["query", "value"])
        save_adapter(folders.llama_three, folders.llama, 3, targets=["q_proj", "v_proj"])
    write_jsonl(folders.train, rows(24, 2))
    write_csv(folders.test, rows(12, 2, seed=1))
    return folders


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, with markers around one text and between two."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words without markers and without a padding token; unknown words are left out."""
    vocabulary = {word: index for index, word in enumerate(("<s>", "</s>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_input_names=["input_ids", "attention_mask"]
    )


def save_adapter(folder: Path, base: Path, classes: int, targets: Sequence[str], seed: int = 0, **options: Any) -> None:
    """Save a LoRA adapter whose head and lora_B are away from where PEFT starts them."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed + classes)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
        config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=list(targets), r=3, lora_alpha=5, **options)
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.data.normal_(std=0.3)
            elif "modules_to_save" in name:
                parameter.data.normal_(std=0.7)
        adapted.save_pretrained(str(folder))


def rows(count: int, classes: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw labelled rows."""
    generator = torch.Generator().manual_seed(seed)

    def below(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    drawn = []
    for index in range(count):
        text = " ".join(WORDS[below(len(WORDS))] for _ in range(3 + below(6)))
        drawn.append({"text": text, "label": index % classes})
    return drawn


def write_jsonl(path: Path, items: Sequence[Any]) -> Path:
    """Write one JSON value per line."""
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def write_csv(path: Path, items: Sequence[dict[str, Any]]) -> Path:
    """Write a header and a row per item; the values hold no commas."""
    lines = [",".join(items[0])] + [",".join(map(str, item.values())) for item in items]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(*arguments: object, stdin: bytes | str | None = None) -> Result:
    """Run a verb in this process; standard output and standard error are kept apart."""
    with warnings.catch_warnings():
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], input=stdin)


def tree(folder: Path) -> dict[str, str]:
    """Digest everything under a folder: names to SHA-256, folders to a mark."""
    found = {}
    for path in sorted(folder.rglob("*")):
        digest = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = digest
    return found


def error_line(result: Result) -> str:
    """Return the one line that says why a verb failed, after checking that it is one and well formed."""
    assert result.exit_code == 1, (result.exit_code, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("laplace-lora: ")]
    assert len(lines) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == lines[0]
    assert lines[0].endswith("."), lines[0]
    assert "internal error" not in lines[0], lines[0]
    return lines[0].removeprefix("laplace-lora: ")


def refused(where: Path, *arguments: object, stdin: bytes | str | None = None) -> str:
    """Run a verb that must fail and leave a folder exactly as it was; return its line."""
    before = tree(where)
    result = run(*arguments, stdin=stdin)
    message = error_line(result)
    assert tree(where) == before
    assert result.stdout == ""
    return message


def edit_json(path: Path, **changes: Any) -> None:
    """Change entries of a JSON object; ``...`` removes one."""
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


@contextlib.contextmanager
def edited_tensors(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Change a safetensors file."""
    tensors = load_file(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    yield tensors
    save_file(tensors, path, metadata={"format": "pt"})


def copy(folder: Path, to: Path) -> Path:
    """Copy a folder."""
    return Path(shutil.copytree(folder, to))


def _base(folder: Path, model: Any, tokenizer: Any) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=POSITIONS,
        initializer_range=0.25,
        pad_token_id=0,
    )


def _llama_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=2 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=POSITIONS,
        initializer_range=0.25,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
