"""load_adapter: what it returns, where everything comes from, and every refusal in one line."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from cli.folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Folders,
    bert_tokenizer,
    build,
    copy,
    edit_json,
    edited_tensors,
    llama_tokenizer,
    save_adapter,
    tree,
)
from laplace_lora import load_adapter
from laplace_lora.adapters import discover_sites
from laplace_lora.errors import AdapterFileError, LaplaceLoRAError, UnsupportedAdapterError

HEAD = "base_model.model.classifier.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return build(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def adapter(folders: Folders, tmp_path: Path) -> Path:
    return copy(folders.two, tmp_path / "adapter")


def _refusal(folder: Path | str, kind: type[LaplaceLoRAError] = AdapterFileError, **options: Any) -> str:
    before = tree(Path(folder)) if os.path.isdir(folder) else None
    with pytest.raises(LaplaceLoRAError) as caught:
        load_adapter(folder, **options)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert message.endswith("."), message
    assert "\n" not in message
    # A remedy follows what is wrong.
    assert ";" in message or ": train" in message, message
    if before is not None:
        assert tree(Path(folder)) == before
    return message


# --- what comes out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes"), [("two", 2), ("three", 3), ("many", 150), ("llama_three", 3)])
@pytest.mark.filterwarnings("ignore:the tokenizer has no padding token:UserWarning")
def test_the_head_says_how_many_classes(name: str, classes: int, folders: Folders) -> None:
    folder = getattr(folders, name)
    model, tokenizer, names = load_adapter(folder)
    assert model.config.num_labels == classes
    assert names is None
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    saved = load_file(folder / ADAPTER_WEIGHTS)
    loaded = peft.get_peft_model_state_dict(model)
    assert all(torch.equal(loaded[key], value) for key, value in saved.items())
    assert tokenizer("the film")["input_ids"]
    # Frozen as it is, its weights are found.
    assert discover_sites(model).sites


@pytest.mark.parametrize("name", ["two", "llama_three"])
@pytest.mark.filterwarnings("ignore:the tokenizer has no padding token:UserWarning")
def test_the_same_logits_as_by_hand(name: str, folders: Folders) -> None:
    model, tokenizer, _ = load_adapter(str(getattr(folders, name)))
    config = json.loads((getattr(folders, name) / ADAPTER_CONFIG).read_text())
    base = AutoModelForSequenceClassification.from_pretrained(
        config["base_model_name_or_path"], num_labels=model.config.num_labels
    )
    by_hand = peft.PeftModel.from_pretrained(base, getattr(folders, name)).eval()
    by_hand.config.pad_token_id = tokenizer.pad_token_id
    batch = tokenizer(["the film was good", "dull"], return_tensors="pt", padding=True)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, by_hand(**batch).logits)


def test_base_dtype_and_base_folder(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    assert next(load_adapter(adapter)[0].parameters()).dtype == torch.float32
    assert next(load_adapter(adapter, dtype=torch.bfloat16)[0].parameters()).dtype == torch.bfloat16
    moved = copy(folders.bert, tmp_path / "moved")
    edit_json(adapter / ADAPTER_CONFIG, base_model_name_or_path=None)
    model, _, _ = load_adapter(adapter, base=moved, device_map={"": "cpu"})
    assert model.config.name_or_path == str(moved)


def test_a_base_given_by_a_path_from_here(folders: Folders, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders.root)
    edit_json(adapter / ADAPTER_CONFIG, base_model_name_or_path="bert")
    assert load_adapter(adapter)[0].config.name_or_path == "bert"


# --- tokenizer -----------------------------------------------------------------------------------------------


def test_the_tokenizer_beside_the_adapter_comes_first(folders: Folders, adapter: Path) -> None:
    own = bert_tokenizer()
    own.model_max_length = 17
    own.save_pretrained(adapter)
    assert load_adapter(adapter)[1].model_max_length == 17
    assert load_adapter(folders.two)[1].model_max_length > 17


def test_a_missing_padding_token_is_set_and_reported(folders: Folders) -> None:
    with pytest.warns(UserWarning, match=r"no padding token; '</s>' is used\.$"):
        model, tokenizer, _ = load_adapter(folders.llama_three)
    assert tokenizer.pad_token == "</s>"
    assert model.config.pad_token_id == tokenizer.pad_token_id == 1


def test_a_causal_model_pads_with_the_tokenizers_token(folders: Folders, tmp_path: Path) -> None:
    """It finds the last word by that token: another in the base's configuration would move it with the padding."""
    base = copy(folders.llama, tmp_path / "base")
    edit_json(base / "config.json", pad_token_id=7)
    tokenizer = llama_tokenizer()
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(base)
    model, tokenizer, _ = load_adapter(folders.llama_three, base=base)
    tokenizer.padding_side = "right"
    alone, padded = (
        tokenizer(texts, return_tensors="pt", padding=True) for texts in (["dull"], ["dull", "the film was good"])
    )
    with torch.no_grad():
        assert torch.allclose(model(**alone).logits[0], model(**padded).logits[0], atol=1e-5)


def test_tokenizers_that_cannot_pad(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    tokenizer = llama_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(adapter)
    assert "no padding, end or unknown token" in _refusal(adapter)
    tokenizer = bert_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[NEW]"})
    tokenizer.save_pretrained(adapter)
    assert "embeddings; save the tokenizer" in _refusal(adapter)
    (adapter / "tokenizer.json").write_text('{"version": "1.0"')
    assert f"the tokenizer in {adapter} cannot be loaded" in _refusal(adapter)


def test_no_tokenizer_at_all(folders: Folders, tmp_path: Path) -> None:
    base = copy(folders.bert, tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    assert f"the tokenizer in {base} cannot be loaded" in _refusal(folders.two, base=base)


# --- refusals: the adapter -----------------------------------------------------------------------------------


def test_no_such_folder(tmp_path: Path) -> None:
    for source in (tmp_path / "none", str(tmp_path / "none"), "./none", "x" * 5000):
        assert "is not a folder; give the folder that save_pretrained wrote." in _refusal(source)
    assert "neither a folder nor a repository" in _refusal("owner/none")
    assert f"has no {ADAPTER_CONFIG}" in _refusal(tmp_path)


def test_a_merged_model(folders: Folders, tmp_path: Path) -> None:
    merged = load_adapter(folders.two)[0].merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert "holds a whole model, not an adapter (a merged one?)" in _refusal(tmp_path / "merged")


@pytest.mark.parametrize("kind", ["IA3", "PREFIX_TUNING", "PROMPT_TUNING", "VERA", None, 7, "x" * 5000])
def test_other_kinds_by_name(kind: Any, adapter: Path) -> None:
    edit_json(adapter / ADAPTER_CONFIG, peft_type=kind)
    assert f"type {str(kind)[:40]}, not LORA" in _refusal(adapter, UnsupportedAdapterError)


def test_real_adapters_of_other_kinds(folders: Folders, tmp_path: Path) -> None:
    configs = {
        "IA3": peft.IA3Config(
            task_type="SEQ_CLS", target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]
        ),
        "PREFIX_TUNING": peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
    }
    for kind, config in configs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = AutoModelForSequenceClassification.from_pretrained(folders.bert)
            peft.get_peft_model(base, config).save_pretrained(tmp_path / kind)
        assert f"type {kind}, not LORA" in _refusal(tmp_path / kind, UnsupportedAdapterError)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, "\ud800"])
def test_a_damaged_config(content: str, adapter: Path) -> None:
    (adapter / ADAPTER_CONFIG).write_bytes(content.encode("utf-8", "surrogatepass"))
    assert str(adapter / ADAPTER_CONFIG) in _refusal(adapter)


@pytest.mark.parametrize("rank", [None, 0, -1, True, 1.5, "3", 10**9, [3]])
def test_an_impossible_rank_is_refused_before_it_takes_memory(rank: Any, adapter: Path) -> None:
    if rank == [3]:
        edit_json(adapter / ADAPTER_CONFIG, rank_pattern=rank)
    else:
        edit_json(adapter / ADAPTER_CONFIG, r=rank)
    assert "says rank" in _refusal(adapter)


def test_missing_and_pickled_weights(adapter: Path) -> None:
    (adapter / ADAPTER_WEIGHTS).rename(adapter / "adapter_model.bin")
    assert f"has no {ADAPTER_WEIGHTS} (adapter_model.bin is a pickle, which is not read)" in _refusal(adapter)
    (adapter / "adapter_model.bin").unlink()
    assert f"{adapter} has no {ADAPTER_WEIGHTS}; save" in _refusal(adapter)


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "truncated": lambda whole: whole[: len(whole) // 2],
    "header cut": lambda whole: whole[:20],
    "longer": lambda whole: whole + b"\x00" * 8,
    "huge header": lambda whole: b"\xff" * 8 + whole[8:],
    "not safetensors": lambda whole: b"PK\x03\x04" + whole,
}


@pytest.mark.parametrize("kind", SPOILT)
def test_damaged_weights(kind: str, adapter: Path) -> None:
    path = adapter / ADAPTER_WEIGHTS
    path.write_bytes(SPOILT[kind](path.read_bytes()))
    assert f"{path} is damaged" in _refusal(adapter)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_named(value: float, adapter: Path) -> None:
    with edited_tensors(adapter / ADAPTER_WEIGHTS) as tensors:
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name][0, 0] = value
    message = _refusal(adapter)
    assert f"{name} in {adapter / ADAPTER_WEIGHTS} holds NaN or infinite" in message


# --- refusals: the base --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "", 5, ["bert"]])
def test_no_base_named(name: Any, adapter: Path) -> None:
    edit_json(adapter / ADAPTER_CONFIG, base_model_name_or_path=name)
    assert "names no base model; give it with --base" in _refusal(adapter)


@pytest.mark.parametrize(
    "name", ["/nowhere/bert", "~/nowhere/at/all", "./bert", "a/b/c", "C:\\models\\bert", "/" * 5000]
)
def test_a_base_that_has_moved(name: str, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapter)
    edit_json(adapter / ADAPTER_CONFIG, base_model_name_or_path=name)
    message = _refusal(adapter)
    assert "is not there any more" in message
    assert "--base" in message


def test_a_base_on_the_hub_out_of_reach(adapter: Path) -> None:
    edit_json(adapter / ADAPTER_CONFIG, base_model_name_or_path="owner/none", revision="abc")
    message = _refusal(adapter)
    assert "the base model owner/none" in message
    assert "--base" in message


def test_a_wrong_base_given(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    for base in (tmp_path / "none", folders.train, ""):
        assert "--base" in _refusal(adapter, base=base)
    # A folder without a model, one of an adapter, another architecture, other sizes.
    (tmp_path / "empty").mkdir()
    for base in (tmp_path / "empty", folders.two, folders.llama):
        message = _refusal(adapter, base=base)
        assert str(base) in message
        assert "--base" in message


def test_a_base_of_other_sizes(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    other = copy(folders.bert, tmp_path / "wide")
    edit_json(other / "config.json", hidden_size=32)
    assert str(other) in _refusal(adapter, base=other)
    edit_json(other / "config.json", hidden_size=2**20)
    assert "weights, and all its files hold" in _refusal(adapter, base=other)
    edit_json(other / "config.json", hidden_size=16, num_hidden_layers=10**9)
    assert "1000000000 layers" in _refusal(adapter, base=other)
    edit_json(other / "config.json", num_hidden_layers=1)
    assert "layer.1.attention.self.query.lora_A.weight has no place" in _refusal(adapter, base=other)
    edit_json(other / "config.json", num_hidden_layers=3)
    assert "they would be random" in _refusal(adapter, base=other)


def test_names_and_shapes_that_do_not_fit(adapter: Path) -> None:
    whole = (adapter / ADAPTER_WEIGHTS).read_bytes()
    with edited_tensors(adapter / ADAPTER_WEIGHTS) as tensors:
        name = next(name for name in tensors if "lora_A" in name)
        tensors[name.replace("query", "quarry").replace("value", "quarry")] = tensors.pop(name)
    message = _refusal(adapter)
    assert f"{name} is missing" in message
    assert "quarry.lora_A.weight has no place" in message
    (adapter / ADAPTER_WEIGHTS).write_bytes(whole)
    with edited_tensors(adapter / ADAPTER_WEIGHTS) as tensors:
        tensors[name] = tensors[name][:, :8].contiguous()
    assert "does not fit the base" in _refusal(adapter)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_base_that_is_not_finite(value: float, folders: Folders, adapter: Path, tmp_path: Path) -> None:
    base = copy(folders.bert, tmp_path / "base")
    with edited_tensors(base / "model.safetensors") as tensors:
        tensors["encoder.layer.0.output.dense.weight"][0, 0] = value
    assert "bert.encoder.layer.0.output.dense.weight of the base" in _refusal(adapter, base=base)


def test_a_damaged_base(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    base = copy(folders.bert, tmp_path / "base")
    path = base / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    assert f"the base model {base}" in _refusal(adapter, base=base)
    tensors = load_file(shutil.copy(folders.bert / "model.safetensors", tmp_path / "x.safetensors"))
    save_file({name: tensor for name, tensor in tensors.items() if "embeddings" not in name}, path, {"format": "pt"})
    assert "they would be random" in _refusal(adapter, base=base)
    path.unlink()
    assert f"the base model {base}" in _refusal(adapter, base=base)
    for content in ("", "{", "[]", '{"model_type": "nonsense"}', '{"model_type": "t5"}'):
        (base / "config.json").write_text(content)
        assert f"the base {base}" in _refusal(adapter, base=base).replace("base model", "base")


def test_code_of_a_checkpoint_is_never_run(folders: Folders, adapter: Path, tmp_path: Path) -> None:
    base = copy(folders.bert, tmp_path / "base")
    (base / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    edit_json(base / "config.json", model_type="strange", auto_map={"AutoConfig": "code.Config"})
    assert f"the base model {base}" in _refusal(adapter, base=base)
    assert not (tmp_path / "ran").exists()


# --- refusals: the task --------------------------------------------------------------------------------------


def test_other_tasks(folders: Folders, adapter: Path) -> None:
    edit_json(adapter / ADAPTER_CONFIG, task_type="TOKEN_CLS")
    assert "task type TOKEN_CLS" in _refusal(adapter)
    edit_json(adapter / ADAPTER_CONFIG, task_type=None)
    assert load_adapter(adapter)[0].config.num_labels == 2  # the saved head says what it is
    with edited_tensors(adapter / ADAPTER_WEIGHTS) as tensors:
        for name in [name for name in tensors if "classifier" in name]:
            del tensors[name]
    assert "names no task type and holds no classification head" in _refusal(adapter)


def test_an_adapter_without_its_head(folders: Folders, tmp_path: Path) -> None:
    save_adapter(tmp_path / "bare", folders.bert, 2, ["query"])
    with edited_tensors(tmp_path / "bare" / ADAPTER_WEIGHTS) as tensors:
        del tensors[HEAD]
    assert "they would be random" in _refusal(tmp_path / "bare")
