"""The number of classes is read off a saved head, whatever the architecture calls it."""

from pathlib import Path

import peft
import pytest
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    RobertaConfig,
)

from laplace_lora.adapters import read_saved_adapter
from laplace_lora.adapters.loading import saved_classes

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
CONFIGS = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "electra": ElectraConfig(**SIZES, embedding_size=8),
    "deberta": DebertaV2Config(**SIZES),
    "distilbert": DistilBertConfig(vocab_size=20, dim=8, n_layers=1, n_heads=2, hidden_dim=8),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=1, pad_token_id=0),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=1, pad_token_id=0),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=1, pad_token_id=0),
    "gpt2": GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, pad_token_id=0),
}


def _save(config: PretrainedConfig, classes: int, folder: Path, **options: object) -> None:
    config.num_labels = classes
    base = AutoModelForSequenceClassification.from_config(config)
    peft.get_peft_model(base, peft.LoraConfig(**{"task_type": "SEQ_CLS", **options})).save_pretrained(folder)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", CONFIGS)
def test_of_every_architecture(name: str, classes: int, tmp_path: Path) -> None:
    targets = {"target_modules": ["q_lin"]} if name == "distilbert" else {}
    _save(CONFIGS[name], classes, tmp_path, **targets)
    CONFIGS[name].num_labels = 3  # the base's own configuration knows nothing of the adapter's classes
    assert saved_classes(CONFIGS[name], read_shapes(tmp_path)) == classes


def test_without_a_head(tmp_path: Path) -> None:
    _save(CONFIGS["bert"], 4, tmp_path, task_type=None, target_modules=["query"])
    assert saved_classes(CONFIGS["bert"], read_shapes(tmp_path)) is None


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a saved adapter's tensors."""
    return read_saved_adapter(folder).shapes
