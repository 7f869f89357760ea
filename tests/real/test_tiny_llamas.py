"""Tiny language models that somebody trained, with their own tokenizers, on real questions.

They know nothing of such questions. What is checked is that every path runs, and that predictions say so.
"""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.counting import Passes, counted_model
from laplace_lora import AnswerTokens, LaplaceConfig, LaplaceLoRA, LaplaceLoRAError, NextToken, OptionScores
from laplace_lora.data import Encoder, LabelReader, layout_of, scan
from laplace_lora.readouts import Readout

SHARED = Path(__file__).resolve().parents[3] / "shared"
MODELS = ("stories260K", "babyllama-tok361")
pytestmark = pytest.mark.skipif(
    not (SHARED / "models").is_dir(),
    reason="needs ../shared/models and ../shared/data, which are not part of the project",
)


def _model(name: str) -> tuple[peft.PeftModel, Any]:
    folder = SHARED / "models" / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "lm_head"], r=8, lora_alpha=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the output embeddings are tied, and the adapter is on them alone
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        if ".lora_B." in key:
            parameter.data.normal_(std=0.05, generator=generator)
    return model.eval(), tokenizer


def _batches(task: str, readout: str, tokenizer: Any, tmp_path: Path, rows: int = 8, size: int = 4) -> list[Any]:
    lines = (SHARED / "data" / task / "train.jsonl").read_text(encoding="utf-8").splitlines()
    # Four choices each, as the paper has it; and short enough for these models.
    chosen = [line for line in lines if len(json.loads(line)["choices"]) in (2, 4) and len(line) < 350][:rows]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(chosen), encoding="utf-8")
    layout = layout_of(readout)
    file = scan(path, LabelReader(4), layout=layout)
    encoder = Encoder(tokenizer, 250, "left", layout=layout, continues=True)
    return list(encoder.batches(file, size))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("task", "answers"), [("winogrande_s", "AB"), ("arc_easy", "ABCD")])
def test_answer_tokens(name: str, task: str, answers: str, tmp_path: Path, passes: Passes) -> None:
    model, tokenizer = _model(name)
    batches = _batches(task, "answer_tokens", tokenizer, tmp_path)
    readout = AnswerTokens.of_words(tokenizer, list(answers))
    la = LaplaceLoRA(counted_model(model, passes), LaplaceConfig(progress=False), readout).fit(batches)
    assert passes.take() == (2, 2 * (len(answers) - 1))
    la.tune_prior("evidence")
    p = la.predict(batches[0])
    assert passes.take() == (1, len(answers) - 1)
    assert torch.isfinite(p.covariance).all()
    # The model knows nothing, and says so: entropies near that of guessing.
    assert float(p.total_entropy.mean()) > 0.6 * math.log(len(answers))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("readout", [OptionScores("characters"), NextToken()], ids=["options", "next-token"])
def test_one_backward_pass(name: str, readout: Readout, tmp_path: Path, passes: Passes) -> None:
    model, tokenizer = _model(name)
    batches = _batches("arc_easy", "option_scores", tokenizer, tmp_path)
    if isinstance(readout, NextToken):
        batches = [
            {"input_ids": b["input_ids"][:, 0], "attention_mask": b["attention_mask"][:, 0], "labels": _labels(b)}
            for b in batches
        ]
    config = LaplaceConfig(progress=False, memory_limit_bytes=2**31)
    la = LaplaceLoRA(counted_model(model, passes), config, readout).fit(batches)
    assert passes.take() == (2, 2)
    p = la.predict(batches[0])
    assert passes.take() == (1, 1)
    assert (p.covariance.diagonal(dim1=1, dim2=2) > 0).all()


def _labels(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["input_ids"][:, 0].masked_fill(batch["completion_mask"][:, 0] == 0, -100)


@pytest.mark.parametrize("name", MODELS)
def test_words_of_several_tokens_are_named(name: str) -> None:
    _, tokenizer = _model(name)
    with pytest.raises(LaplaceLoRAError, match=r"'True' is \['T', 'r', 'u', 'e'\]"):
        AnswerTokens.of_words(tokenizer, ["True", "False"])
