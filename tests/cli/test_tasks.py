"""Tasks by name on the command line: listed, shown, resolved for every way of reading, trained, fitted, evaluated."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from cli.folders import error_line, run
from cli.task_scenes import bases, copies
from cli.task_scenes import run_well as _run
from laplace_lora.presets import PRESETS
from laplace_lora.tasks import TASKS

__all__ = ["bases", "copies"]

SHARED = Path(__file__).resolve().parents[3] / "shared"
SIX = ("winogrande_s", "winogrande_m", "arc_challenge", "arc_easy", "openbookqa", "boolq")


def test_the_list() -> None:
    said = _run("tasks")
    for task in TASKS.values():
        line = next(line for line in said.splitlines() if line.startswith(f"{task.name} "))
        assert task.hub.licence in line
        assert all(str(size) in line for size in task.sizes.values())
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize("name", list(TASKS))
def test_show_without_a_tokenizer(copies: Path, name: str) -> None:
    said = _run("tasks", "show", name, "--data-dir", copies)
    assert TASKS[name].hub.revision in said
    assert TASKS[name].hub.licence in said
    assert f"{name}:{TASKS[name].evaluation}" in said
    assert said.count("\nrow ") == 2


def test_show_without_rows(tmp_path: Path) -> None:
    said = _run("tasks", "show", "wic", "--data-dir", tmp_path)
    assert TASKS["wic"].hub.revision in said
    assert "no examples: there is no wic:validation in" in said
    law = _run("tasks", "show", "mmlu_law:validation", "--data-dir", tmp_path)
    assert "mmlu_law has no validation split on the hub; choose train, test" in law


def test_show_prints_token_ids_and_answers(copies: Path, bases: dict[str, Path]) -> None:
    said = _run("tasks", "show", "openbookqa", "--data-dir", copies, "--tokenizer", bases["llama"], "--rows", 1)
    tokenizer = AutoTokenizer.from_pretrained(bases["llama"])
    prompt = next(line for line in said.splitlines() if line.startswith("  | ")).removeprefix("  | ")
    assert prompt.startswith("Select one of the choices that answers the following question: the")
    ids = next(line for line in said.splitlines() if line.startswith("  tokens")).split(": ")[1]
    assert [int(token) for token in ids.split()] == tokenizer(prompt)["input_ids"]
    expected = ", ".join(f"{letter} = {tokenizer.convert_tokens_to_ids(letter)} '{letter}'" for letter in "ABCD")
    assert f"answer tokens: {expected}" in said


def test_show_closes_boolq(copies: Path, bases: dict[str, Path]) -> None:
    options = ("--data-dir", copies, "--tokenizer", bases["llama"], "--rows", 1)
    tokenizer = AutoTokenizer.from_pretrained(bases["llama"])
    for limit in ((), ("--max-length", 12)):
        said = _run("tasks", "show", "boolq", *options, *limit)
        assert "False = " in said
        ids = next(line for line in said.splitlines() if line.startswith("  tokens")).split(": ")[1].split()
        assert int(ids[-1]) == tokenizer.eos_token_id
        assert len(ids) == 12 or not limit
        # A long passage is cut at its end: instruction and question stay.
        start = tokenizer("Answer the question with only True or False:")["input_ids"]
        assert [int(token) for token in ids[: len(start)]] == start


@pytest.mark.parametrize("readout", ["answers", "options", "class"])
@pytest.mark.parametrize("base", ["llama", "bert"])
def test_show_every_way(copies: Path, bases: dict[str, Path], base: str, readout: str) -> None:
    options = ("--data-dir", copies, "--tokenizer", bases[base], "--readout", readout, "--rows", 1)
    if (base, readout) == ("bert", "answers"):
        assert "answers must be one token each" in error_line(run("tasks", "show", "rte", *options))
        return
    said = _run("tasks", "show", "rte", *options)
    assert f"read by {readout}" in said
    assert said.count("tokens of choice") == (2 if readout == "options" else 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hellaswag",), "hellaswag is neither a file nor a task: check the path, or see laplace-lora tasks"),
        (("openbokqa",), "openbokqa is neither a file nor a task: did you mean openbookqa? Check the path"),
        (("rte:dev",), "'dev' is no part of rte"),
        (("rte", "--prompts", "mine"), "prompts 'mine' are not known"),
        (("rte", "--readout", "pairwise"), "readout 'pairwise' is not one of"),
        (("rte", "--chat"), "give --tokenizer with --chat"),
        (("rte", "--tokenizer", "nowhere"), "the tokenizer nowhere cannot be loaded"),
    ],
)
def test_show_refuses(copies: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in error_line(run("tasks", "show", *arguments, "--data-dir", copies))


WAYS = (("llama", "answers"), ("llama", "options"), ("bert", "options"), ("bert", "class"))


@pytest.mark.parametrize(("base", "readout"), WAYS, ids=lambda way: way)
@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_in_every_way(
    copies: Path, bases: dict[str, Path], tmp_path: Path, name: str, base: str, readout: str
) -> None:
    """Resolved up to the first step: base, fresh adapter, readout, every training row as tokens."""
    options = ("--data", name, "--data-dir", copies, "--readout", readout, "--out", tmp_path / "out", "--dry-run")
    said = _run("train", "--model", bases[base], "--quiet", *options)
    classes = 5 if name in ("arc_easy_5", "arc_challenge_5") else TASKS[name].choices
    assert f"{classes} classes" in said
    assert f"evaluation:     {name}:{TASKS[name].evaluation}, n = " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("base", "expected"), [("llama", "answer_tokens"), ("bert", "natural")])
@pytest.mark.parametrize("name", ["openbookqa", "boolq", "sst2"])
def test_the_way_nobody_names(
    copies: Path, bases: dict[str, Path], tmp_path: Path, name: str, base: str, expected: str
) -> None:
    options = ("--data", name, "--data-dir", copies, "--out", tmp_path / "out", "--dry-run", "--quiet")
    said = _run("train", "--model", bases[base], *options)
    natural = "option_scores" if name == "openbookqa" else "class_logits"
    assert f"read by:        {natural if expected == 'natural' else expected}," in said


@pytest.mark.parametrize("name", SIX)
def test_dry_run_of_paper(copies: Path, bases: dict[str, Path], tmp_path: Path, name: str) -> None:
    options = ("--data", name, "--data-dir", copies, "--out", tmp_path / "out", "--dry-run", "--quiet")
    said = _run("train", "--preset", "paper", "--model", bases["llama"], *options)
    for part in (
        "Yang et al., ICLR 2024",
        "--quantization int8",
        f"{name}:train, n = ",
        f"{name}:validation, n = ",
        "read by:        answer_tokens",
        "at most 300 tokens, padded on the left",
        "LoRA r=8, alpha=16, dropout 0.1 on lm_head, q_proj, v_proj",
        "AdamW, learning rate 5e-05 falling linearly after 0% of warm-up, weight decay 0, no clipping",
        "10,000 of 4 rows",
        "a checkpoint every 1,000 (10 in all)",
        "21; the preset's others, each by --seed: 42, 87",
    ):
        assert part in said
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_paper_in_8_bits(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    options = ("--data", "openbookqa", "--data-dir", copies, "--out", tmp_path / "out", "--dry-run", "--quiet")
    said = _run("train", "--preset", "paper", "--quantization", "int8", "--model", bases["llama"], *options)
    assert "quantised by int8" in said
    assert "lm_head, q_proj, v_proj" in said


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_resolve(copies: Path, bases: dict[str, Path], tmp_path: Path, preset: str) -> None:
    base = "bert" if preset in ("paper-glue", "small") else "llama"
    name = {"paper-glue": "rte", "successors": "arc_easy_5"}.get(preset, "openbookqa")
    short = () if preset != "paper-glue" else ("--max-length", 100)  # of this BERT
    options = ("--data", name, "--data-dir", copies, "--out", tmp_path / "out", "--dry-run", "--quiet", *short)
    said = _run("train", "--preset", preset, "--model", bases[base], *options)
    expected = {
        "paper": "10,000 of 4 rows",
        "paper-glue": "10,000 of 32 rows",
        "successors": "5,000 of 8 rows",
        "small": "3 of 16 rows",
    }[preset]
    assert expected in said
    assert ("Return the label of the correct answer" in said) == (preset == "successors")


def test_what_is_said_comes_before_the_preset(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    options = ("--data", "openbookqa", "--data-dir", copies, "--out", tmp_path / "out", "--dry-run", "--quiet")
    own = ("--steps", 7, "--rank", 2, "--dropout", 0.0, "--seed", 5, "--target-modules", "q_proj", "--save-every", 3)
    said = _run("train", "--preset", "paper", "--model", bases["llama"], *options, *own, "--prompts", "paper-code")
    assert "LoRA r=2, alpha=16, dropout 0 on q_proj" in said
    assert "7 of 4 rows" in said
    assert "(3 in all)" in said
    assert "seed:           5; the preset's others, each by --seed: 21, 42, 87" in said
    assert "endswith('.')" in said
    epochs = _run("train", "--preset", "paper", "--model", bases["llama"], *options, "--epochs", 2)
    assert "(2.0 epochs)" in epochs


def test_what_is_left_out_is_said(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    options = ("--data", "arc_easy", "--data-dir", copies, "--model", bases["bert"])
    result = run("train", *options, "--steps", 1, "--rank", 1, "--out", tmp_path / "adapter")
    assert "arc_easy:train, n = 13: from a copy of allenai/ai2_arc" in result.stderr
    assert "2 of 15 rows without exactly 4 choices left out; OWN SPLIT, not the published one" in result.stderr
    fit = run("fit", "--adapter", tmp_path / "adapter", *options[:4], "--prior", 1, "--json-log")
    said = [json.loads(line) for line in fit.stderr.splitlines()]
    assert next(line for line in said if line["event"] == "data")["left_out"] == 2


def test_an_unknown_preset(bases: dict[str, Path], tmp_path: Path) -> None:
    result = run("train", "--preset", "mine", "--model", bases["bert"], "--data", "rte", "--out", tmp_path / "out")
    assert error_line(result).endswith("choose paper, paper-glue, successors, small.")


@pytest.mark.parametrize(("base", "readout"), WAYS, ids=lambda way: way)
def test_both_protocols(copies: Path, bases: dict[str, Path], tmp_path: Path, base: str, readout: str) -> None:
    """Train, fit and evaluate by name, with what lies outside; in the second protocol with the last fifth held out."""
    named = ("--data-dir", copies, "--quiet")
    outside = ("--ood", "arc_easy", "--ood", "mmlu_phy")
    for rows, held_out in (("openbookqa", ()), ("openbookqa:train[:80%]", ("--validation", "openbookqa:train[80%:]"))):
        folder = tmp_path / rows.replace(":", "-")
        train = ("--preset", "small", "--epochs", 1, "--rank", 2, "--readout", readout, "--model", bases[base])
        _run("train", "--data", rows, *train, *named, "--out", folder / "adapter")
        adapter = ("--adapter", folder / "adapter")
        _run("fit", "--data", rows, *adapter, *held_out, *named)
        _run("evaluate", "--data", "openbookqa", *adapter, *held_out, *outside, *named, "--out", folder / "report")
        metrics = json.loads((folder / "report" / "metrics.json").read_text())
        assert metrics["data"]["task"] == "openbookqa"
        assert metrics["data"]["split"] == "validation"
        assert metrics["data"]["own_split"]
        assert metrics["n"] == metrics["data"]["rows"] == 7
        assert ("temperature" in metrics["methods"]) == bool(held_out)
        assert len(metrics["ood"]) == 2
        saved = json.loads((folder / "adapter" / "training_config.json").read_text())
        assert saved["data"]["split"] == rows.partition(":")[2] or "train"
        assert saved["settings"]["preset"]["name"] == "small"


def test_a_split_must_be_said_for_validation(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    options = ("--model", bases["bert"], "--data", "rte", "--validation", "rte", "--data-dir", copies)
    result = run("train", *options, "--out", tmp_path / "out")
    assert "say which rows of rte are held out: rte:validation, or rte:train[80%:]" in error_line(result)


def test_a_file_of_a_tasks_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rte").write_text('{"text": "the film", "label": 0}\n')
    assert "rte is a file; name a task" in error_line(run("tasks", "show", "rte"))


# Prompts of one's own.


def _format(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "training_config.json").read_text())["input_format"]


def test_a_template_in_the_place_of_the_tasks(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    own = "{{ question }}{% for choice in choices %} {{ letters[loop.index0] }}: {{ choice }}{% endfor %} :"
    options = ("--data", "openbookqa", "--data-dir", copies, "--quiet", "--steps", 1, "--template", own)
    _run("train", "--model", bases["llama"], *options, "--out", tmp_path / "out")
    assert _format(tmp_path / "out")["template"] == own
    said = _run("tasks", "show", "openbookqa", "--data-dir", copies, "--tokenizer", bases["llama"], "--template", own)
    assert " A: " in said


def test_the_tokenizers_chat_template(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    named = ("--data-dir", copies, "--quiet")
    train = ("--data", "boolq", *named, "--steps", 2, "--chat", "--target-modules", "q_proj,lm_head")
    adapter = tmp_path / "adapter"
    _run("train", "--model", bases["llama"], *train, "--out", adapter)
    form = _format(adapter)
    assert form["chat"] is True
    assert "</s>" not in form["template"]  # a chat template has an end of its own
    _run("fit", "--adapter", adapter, "--data", "boolq", *named)
    assert json.loads((adapter / "posterior_config.json").read_text())["input_format"]["chat"] is True
    _run("evaluate", "--adapter", adapter, "--data", "boolq", *named, "--out", tmp_path / "report")
    show = ("tasks", "show", "boolq", "--data-dir", copies, "--tokenizer", bases["llama"], "--chat", "--rows", 1)
    tokenizer = AutoTokenizer.from_pretrained(bases["llama"])
    said = _run(*show)
    prompt = next(line for line in said.splitlines() if line.startswith("  | ")).removeprefix("  | ")
    ids = [int(token) for token in next(x for x in said.splitlines() if "tokens (" in x).split(": ")[1].split()]
    # One beginning-of-sequence token, the message, and where the answer begins; the date is always the same one.
    wrapped = f"<s>[user] {prompt} 26 Jul 2024 red"
    assert ids == tokenizer(wrapped, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_no_chat_for_pairs(bases: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"chosen": "good film", "rejected": "bad film"}\n' * 4)
    options = ("--data", data, "--readout", "pairwise", "--chat", "--out", tmp_path / "out", "--dry-run")
    said = error_line(run("train", "--model", bases["llama"], *options))
    assert said.endswith("--chat is for one prompt per row, not for pairs of texts; leave it out.")


def test_no_chat_template(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    options = ("--data", "rte", "--data-dir", copies, "--chat", "--out", tmp_path / "out")
    result = run("train", "--model", bases["bert"], *options)
    assert error_line(result).endswith("the tokenizer has no chat template; leave out --chat, or give --template.")


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs ../shared/data and ../shared/models")
@pytest.mark.parametrize("name", ["winogrande_s", "arc_challenge", "openbookqa"])
def test_dry_run_of_paper_on_real_rows(tmp_path: Path, name: str) -> None:
    base = SHARED / "models" / "babyllama-tok361"
    options = (
        "--data",
        f"{name}:train[:50]",
        "--data-dir",
        SHARED / "data",
        "--max-length",
        256,
        "--dry-run",
        "--quiet",
    )
    said = _run("train", "--preset", "paper", "--model", base, *options, "--out", tmp_path / "out")
    assert "answer tokens:" in said
    assert f"{name}:validation, n = " in said
