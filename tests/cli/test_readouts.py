"""Every way of reading a model, through train, fit, evaluate and predict, on tiny models made here."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertModel, LlamaForCausalLM, PreTrainedTokenizerFast

from cli.folders import (
    TRAINING_CONFIG,
    WORDS,
    _bert_config,
    _llama_config,
    bert_tokenizer,
    error_line,
    rows,
    run,
    write_jsonl,
)
from laplace_lora import LaplaceLoRA, Scalar, load_adapter

QUICK = ("--quiet", "--epochs", "2", "--rank", "2")


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny causal language model with tied embeddings."""
    folder = tmp_path_factory.mktemp("lm") / "llama"
    config = _llama_config()
    config.tie_word_embeddings = True
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    language_tokenizer().save_pretrained(folder)
    return folder


def language_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words with a token for unknown ones."""
    vocabulary = {word: index for index, word in enumerate(("<s>", "</s>", *WORDS))}
    vocabulary["<unk>"] = vocabulary.pop(WORDS[-1])
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny encoder without a head."""
    folder = tmp_path_factory.mktemp("encoder") / "bert"
    torch.manual_seed(0)
    BertModel(_bert_config()).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return folder


def _choices(count: int, ragged: bool = False) -> list[dict[str, Any]]:
    texts = [row["text"] for row in rows(count * 5, 2, seed=3)]
    items = []
    for index in range(count):
        choices = texts[5 * index + 1 : 5 * index + (3 + index % 3 if ragged else 4)]
        items.append({"question": texts[5 * index], "choices": choices, "label": index % len(choices)})
    return items


def _all(tmp_path: Path, base: Path, items: list[dict[str, Any]], *train: object, validated: bool = True) -> Path:
    """Run all four verbs; return the folder with adapter/, report/ and predictions.jsonl."""
    data = write_jsonl(tmp_path / "train.jsonl", items[:12])
    held_out = write_jsonl(tmp_path / "validation.jsonl", items[12:18])
    test = write_jsonl(tmp_path / "test.jsonl", items[18:])
    adapter = tmp_path / "adapter"
    validation = ("--validation", held_out) if validated else ()
    for arguments in (
        ("train", "--model", base, "--data", data, "--out", adapter, *QUICK, *train),
        ("fit", "--adapter", adapter, "--data", data, *validation, "--quiet", "--batch-size", "5"),
        ("evaluate", "--adapter", adapter, "--data", test, "--out", tmp_path / "report", "--quiet"),
        ("predict", "--adapter", adapter, "--data", test, "--out", tmp_path / "predictions.jsonl", "--quiet"),
    ):
        result = run(*arguments)
        assert result.exit_code == 0, (arguments[0], result.stderr, result.exception)
    return tmp_path


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _metrics(folder: Path) -> dict[str, Any]:
    assert "<html" in (folder / "report" / "report.html").read_text()
    return json.loads((folder / "report" / "metrics.json").read_text())


def test_answer_tokens(language_model: Path, tmp_path: Path) -> None:
    options = ("--readout", "answers", "--answers", "yes,no", "--target-modules", "q_proj,v_proj,lm_head")
    folder = _all(tmp_path, language_model, rows(24, 2), *options)
    metrics = _metrics(folder)
    ids = language_tokenizer().convert_tokens_to_ids(["yes", "no"])
    assert metrics["readout"] == {"name": "answer_tokens", "settings": {"token_ids": ids}}
    assert set(metrics["methods"]) == {"map", "laplace"}
    assert metrics["n"] == 6
    saved = json.loads((folder / "adapter" / TRAINING_CONFIG).read_text())
    assert saved["readout"] == metrics["readout"]
    predictions = _lines(folder / "predictions.jsonl")
    assert {p["label"] for p in predictions} <= {"yes", "no"}
    assert all(len(p["probabilities"]) == 2 for p in predictions)
    # The same from Python.
    model, tokenizer, names = load_adapter(folder / "adapter")
    assert names == ("yes", "no")
    la = LaplaceLoRA.from_pretrained(model, folder / "adapter")
    text = la.input_format.template.replace("{{ text }}", rows(24, 2)[18]["text"])
    again = la.predict(dict(tokenizer([text], return_tensors="pt")))
    torch.testing.assert_close(again.probabilities[0].tolist(), predictions[0]["probabilities"], rtol=1e-5, atol=1e-7)
    # PEFT's copy of the frozen output embeddings is not saved.
    assert not any("base_layer" in key for key in _tensor_names(folder / "adapter"))


def _tensor_names(adapter: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        return list(file.keys())


def test_options_of_an_encoder(encoder: Path, tmp_path: Path) -> None:
    folder = _all(tmp_path, encoder, _choices(24, ragged=True), "--readout", "options")
    metrics = _metrics(folder)
    assert metrics["readout"]["name"] == "option_scores"
    predictions = _lines(folder / "predictions.jsonl")
    counts = [len(item["choices"]) for item in _choices(24, ragged=True)[18:]]
    assert [len(p["probabilities"]) for p in predictions] == counts
    assert all(sum(p["probabilities"]) == pytest.approx(1.0) for p in predictions)
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] is None
    assert config["auto_mapping"]["base_model_class"] == "BertForMultipleChoice"


def test_options_of_a_language_model(language_model: Path, tmp_path: Path) -> None:
    options = ("--readout", "options", "--normalise", "characters")
    folder = _all(tmp_path, language_model, _choices(24, ragged=True), *options)
    assert _metrics(folder)["readout"] == {"name": "option_scores", "settings": {"normalise": "characters"}}
    assert len(_lines(folder / "predictions.jsonl")) == 6


def test_next_tokens(language_model: Path, tmp_path: Path) -> None:
    texts = [row["text"] for row in rows(48, 2, seed=5)]
    items = [{"prompt": a, "completion": " " + b} for a, b in zip(texts[:24], texts[24:], strict=True)]
    folder = _all(tmp_path, language_model, items, validated=False)
    metrics = _metrics(folder)
    assert metrics["readout"]["name"] == "next_token"
    assert metrics["posterior"]["fisher"] == "mc"
    assert set(metrics["methods"]["map"]) == {"nll", "accuracy", "ece", "confidence", "intervals"}
    predictions = _lines(folder / "predictions.jsonl")
    assert all(p["log_probability"] < 0 and p["sd"] > 0 and p["tokens"] > 1 for p in predictions)
    # What evaluate calls MAP is the mean of what predict writes.
    mean = -sum(p["log_probability"] for p in predictions) / sum(p["tokens"] for p in predictions)
    assert metrics["methods"]["map"]["nll"] == pytest.approx(mean, rel=1e-4)


def test_preferences_and_rewards(encoder: Path, tmp_path: Path) -> None:
    texts = [row["text"] for row in rows(48, 2, seed=6)]
    items = [{"chosen": a, "rejected": b} for a, b in zip(texts[:24], texts[24:], strict=True)]
    folder = _all(tmp_path, encoder, items)
    assert _metrics(folder)["readout"]["name"] == "pairwise_reward"
    predictions = _lines(folder / "predictions.jsonl")
    assert {p["label"] for p in predictions} <= {"chosen", "rejected"}
    assert all(len(p["rewards"]) == 2 and min(p["reward_sd"]) > 0 for p in predictions)
    # Single texts get their reward.
    single = write_jsonl(tmp_path / "single.jsonl", [{"text": items[18]["chosen"]}])
    result = run("predict", "--adapter", folder / "adapter", "--data", single, "--out", "-", "--quiet")
    assert result.exit_code == 0, result.stderr
    reward = json.loads(result.stdout)
    assert reward["mean"] == pytest.approx(predictions[0]["rewards"][0], rel=1e-4)
    assert reward["sd"] == pytest.approx(predictions[0]["reward_sd"][0], rel=1e-4)
    assert "interval_95" not in reward


@pytest.mark.parametrize("validated", [True, False])
def test_real_numbers(validated: bool, encoder: Path, tmp_path: Path) -> None:
    items = [{"text": row["text"], "label": len(row["text"]) / 10} for row in rows(24, 2)]
    folder = _all(tmp_path, encoder, items, "--readout", "scalar", validated=validated)
    metrics = _metrics(folder)
    assert metrics["readout"]["name"] == "scalar"
    assert {"nll", "rmse", "coverage_95"} <= set(metrics["methods"]["laplace"])
    predictions = _lines(folder / "predictions.jsonl")
    for p in predictions:
        low, high = p["interval_95"]
        assert low < p["mean"] < high
        assert p["predictive_sd"] > p["sd"] > 0
    la = LaplaceLoRA.from_pretrained(load_adapter(folder / "adapter")[0], folder / "adapter")
    assert isinstance(la.readout, Scalar)
    assert la.noise_variance == pytest.approx(metrics["noise_variance"]["laplace"])


def test_acquire_by_options_preferences_and_numbers(encoder: Path, language_model: Path, tmp_path: Path) -> None:
    texts = [row["text"] for row in rows(48, 2, seed=6)]
    pairs = [{"chosen": a, "rejected": b} for a, b in zip(texts[:24], texts[24:], strict=True)]
    numbers = [{"text": row["text"], "label": len(row["text"]) / 10} for row in rows(24, 2)]
    for name, items, options in (
        ("options", _choices(24, ragged=True), ("--readout", "options")),
        ("pairs", pairs, ()),
        ("numbers", numbers, ("--readout", "scalar")),
    ):
        (tmp_path / name).mkdir()
        folder = _all(tmp_path / name, encoder, items, *options, validated=False)
        ranked = {}
        for method in ("bald", "batch_bald"):
            out = folder / f"{method}.jsonl"
            common = ("--data", folder / "test.jsonl", "--out", out, "--method", method, "--quiet")
            result = run("acquire", "--adapter", folder / "adapter", *common)
            assert result.exit_code == 0, (name, result.stderr, result.exception)
            ranked[method] = _lines(out)
        assert ranked["batch_bald"][0]["row"] == ranked["bald"][0]["row"]
        assert ranked["batch_bald"][0]["score"] == pytest.approx(ranked["bald"][0]["score"], abs=2e-3)
        assert sorted(one["row"] for one in ranked["batch_bald"]) == list(range(6))
    # Of numbers, the more uncertain output ranks higher.
    sds = [one["sd"] for one in ranked["bald"]]
    assert sds == sorted(sds, reverse=True)
    single = write_jsonl(tmp_path / "single.jsonl", [{"text": "good film"}])
    refused = run("acquire", "--adapter", tmp_path / "pairs" / "adapter", "--data", single, "--out", "-")
    assert "chosen" in error_line(refused)


def test_acquire_has_nothing_to_say_of_texts(language_model: Path, tmp_path: Path) -> None:
    texts = [row["text"] for row in rows(48, 2, seed=5)]
    items = [{"prompt": a, "completion": " " + b} for a, b in zip(texts[:24], texts[24:], strict=True)]
    folder = _all(tmp_path, language_model, items, validated=False)
    result = run("acquire", "--adapter", folder / "adapter", "--data", folder / "test.jsonl", "--out", "-")
    assert "rank those by predict's sd" in error_line(result)


def test_what_is_ambiguous_or_unknown_is_refused(language_model: Path, encoder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", _choices(6))
    _all_of = ("--data", data, "--out", tmp_path / "a", "--quiet")
    unknown = error_line(run("train", "--model", encoder, *_all_of, "--readout", "magic"))
    assert "'magic' is not known; choose one of class, answers" in unknown
    several = error_line(run("train", "--model", language_model, *_all_of, "--readout", "answers"))
    assert "answers must be one token each" in several
    assert "'A'" in several
    misfit = error_line(run("train", "--model", encoder, *_all_of, "--readout", "answers"))
    assert "causal language model" in misfit or "answers must be one token" in misfit
    assert not (tmp_path / "a").exists()


def test_labels_beyond_a_rows_choices_are_named(encoder: Path, tmp_path: Path) -> None:
    items = _choices(6)
    items[3]["label"] = 7
    data = write_jsonl(tmp_path / "d.jsonl", items)
    message = error_line(
        run("train", "--model", encoder, "--data", data, "--out", tmp_path / "a", "--readout", "options", "--quiet")
    )
    assert f"{data}:4: the label 7 is none of the row's 3 choices" in message


# --- what a review found ---------------------------------------------------------------------------------------


def _train(tmp_path: Path, base: Path, items: list[dict[str, Any]], *options: object) -> Any:
    data = write_jsonl(tmp_path / "d.jsonl", items)
    return run("train", "--model", base, "--data", data, "--out", tmp_path / "a", *QUICK, *options)


def test_options_without_a_use_are_refused(language_model: Path, encoder: Path, tmp_path: Path) -> None:
    pairs = [{"chosen": "good film", "rejected": "bad film"}] * 4
    numbers = [{"text": "good film", "label": 0.5}] * 4
    for base, items, options, part in (
        (encoder, pairs, ("--labels", "x,y"), "--labels has no use where outputs are read by pairwise"),
        (encoder, numbers, ("--readout", "scalar", "--labels", "x,y"), "--labels has no use"),
        (encoder, _choices(6), ("--readout", "options", "--normalise", "tokens"), "--normalise has no use"),
        (encoder, rows(6, 2), ("--readout", "class", "--answers", "yes,no"), "--answers has no use"),
    ):
        assert part in error_line(_train(tmp_path, base, items, *options))
    labelled = [{**pair, "label": 1} for pair in pairs]
    assert "d.jsonl:1 has a label beside its two texts" in error_line(_train(tmp_path, encoder, labelled))
    same = [{"chosen": "good film", "rejected": "good film"}, *pairs]
    assert "d.jsonl:1: the chosen and the rejected text are the same" in error_line(_train(tmp_path, encoder, same))
    assert not (tmp_path / "a").exists()


def test_answers_alone_ask_for_a_language_model(language_model: Path, tmp_path: Path) -> None:
    labelled = [{"text": row["text"], "label": ("yes", "no")[row["label"]]} for row in rows(8, 2)]
    result = _train(tmp_path, language_model, labelled, "--answers", "yes,no")
    assert result.exit_code == 0, result.stderr
    saved = json.loads((tmp_path / "a" / TRAINING_CONFIG).read_text())
    assert saved["readout"]["name"] == "answer_tokens"
    # The settings of the training are those of the fit, without asking again.
    data = tmp_path / "d.jsonl"
    assert run("fit", "--adapter", tmp_path / "a", "--data", data, "--quiet").exit_code == 0
    model, _, names = load_adapter(tmp_path / "a")
    assert names == ("yes", "no")
    assert LaplaceLoRA.from_pretrained(model, tmp_path / "a").readout.settings() == saved["readout"]["settings"]


def test_normalisation_is_kept_and_can_be_changed(language_model: Path, tmp_path: Path) -> None:
    result = _train(tmp_path, language_model, _choices(8), "--readout", "options", "--normalise", "characters")
    assert result.exit_code == 0, result.stderr
    for options, expected in (
        ((), "characters"),
        (("--readout", "options"), "characters"),
        (("--normalise", "tokens"), "tokens"),
    ):
        assert (
            run("fit", "--adapter", tmp_path / "a", "--data", tmp_path / "d.jsonl", "--quiet", *options).exit_code == 0
        )
        la = LaplaceLoRA.from_pretrained(load_adapter(tmp_path / "a")[0], tmp_path / "a")
        assert la.readout.settings() == {"normalise": expected}


@pytest.mark.parametrize("kind", ["pairs", "scalar", "completions"])
def test_training_stops_early_by_every_likelihood(
    kind: str, language_model: Path, encoder: Path, tmp_path: Path
) -> None:
    texts = [row["text"] for row in rows(24, 2)]
    both = list(zip(texts[:12], texts[12:], strict=True))
    items, base, options = {
        "pairs": ([{"chosen": a, "rejected": b} for a, b in both], encoder, ()),
        "scalar": ([{"text": a, "label": len(b) / 9} for a, b in both], encoder, ("--readout", "scalar")),
        "completions": ([{"prompt": a, "completion": " " + b} for a, b in both], language_model, ()),
    }[kind]
    held_out = write_jsonl(tmp_path / "v.jsonl", items[:4])
    result = _train(tmp_path, base, items, "--validation", held_out, *options)
    assert result.exit_code == 0, (result.stderr, result.exception)


def test_a_language_model_with_choices_is_asked_for(language_model: Path, tmp_path: Path) -> None:
    message = error_line(_train(tmp_path, language_model, _choices(6)))
    assert message.endswith("say which: --readout answers, options or class.")


def test_letters_as_labels_and_more_choices_in_other_files(encoder: Path, tmp_path: Path) -> None:
    letters = [{**item, "label": "ABC"[item["label"]]} for item in _choices(8)]
    more = write_jsonl(tmp_path / "more.jsonl", _choices(9, ragged=True))
    result = _train(tmp_path, encoder, letters, "--readout", "options", "--validation", more)
    assert result.exit_code == 0, result.stderr
    adapter, data = tmp_path / "a", tmp_path / "d.jsonl"
    assert run("fit", "--adapter", adapter, "--data", data, "--validation", more, "--quiet").exit_code == 0
    options = ("--out", tmp_path / "report", "--ood", more, "--quiet")
    result = run("evaluate", "--adapter", adapter, "--data", data, *options)
    assert result.exit_code == 0, result.stderr
    assert "ood" in json.loads((tmp_path / "report" / "metrics.json").read_text())


def test_instructions_with_and_without_input(language_model: Path, tmp_path: Path) -> None:
    texts = [row["text"] for row in rows(24, 2)]
    items = [
        {"instruction": a, "input": "" if i % 2 else "the plot", "output": " " + b}
        for i, (a, b) in enumerate(zip(texts[:12], texts[12:], strict=True))
    ]
    result = _train(tmp_path, language_model, items)
    assert result.exit_code == 0, result.stderr
    saved = json.loads((tmp_path / "a" / TRAINING_CONFIG).read_text())
    assert "{{ input }}" in saved["input_format"]["template"]


def test_a_template_for_completions(language_model: Path, tmp_path: Path) -> None:
    items = [{"prompt": "the film", "completion": " was " + row["text"]} for row in rows(8, 2)]
    result = _train(tmp_path, language_model, items, "--template", "why {{ prompt }}")
    assert result.exit_code == 0, result.stderr


def test_tuning_that_cannot_work_is_refused_before_the_pass(language_model: Path, tmp_path: Path) -> None:
    items = [{"prompt": "the film", "completion": " was " + row["text"]} for row in rows(8, 2)]
    assert _train(tmp_path, language_model, items).exit_code == 0
    data = tmp_path / "d.jsonl"
    message = error_line(run("fit", "--adapter", tmp_path / "a", "--data", data, "--validation", data, "--quiet"))
    assert "validation tuning needs classes" in message
    assert not (tmp_path / "a" / "posterior_config.json").exists()
