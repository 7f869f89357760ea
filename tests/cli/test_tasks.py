"""Tasks by name on the command line: listed, shown, resolved for every way of reading, trained, fitted, evaluated."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertModel, LlamaForCausalLM, PreTrainedTokenizerFast

from cli.folders import WORDS, _bert_config, _llama_config, bert_tokenizer, error_line, run
from laplace_lora.presets import PRESETS
from laplace_lora.tasks import TASKS
from tasks.hub_copies import write_copy

SHARED = Path(__file__).resolve().parents[3] / "shared"
SIX = ("winogrande_s", "winogrande_m", "arc_challenge", "arc_easy", "openbookqa", "boolq")
LETTERS = tuple("ABCDEF")
CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} {{ strftime_now('%Y') }} red"


def _tokenizer(chat: bool = False) -> PreTrainedTokenizerFast:
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
        config.vocab_size, config.max_position_embeddings = len(_tokenizer()), 512
        LlamaForCausalLM(config).save_pretrained(root / "llama")
        _tokenizer(chat=True).save_pretrained(root / "llama")
        encoder = _bert_config()
        encoder.max_position_embeddings = 128
        BertModel(encoder).save_pretrained(root / "bert")
        bert_tokenizer().save_pretrained(root / "bert")
    return {"llama": root / "llama", "bert": root / "bert"}


def _run(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return str(result.stdout)


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


# Labels of what lies outside.


@pytest.mark.parametrize(
    ("base", "readout", "inside", "outside", "said"),
    [
        ("bert", "class", "sst2", "rte", "its classes are entailment, not entailment, and the adapter's are negative,"),
        ("bert", "class", "sst2", "openbookqa", "its classes are without names, and the adapter's are negative,"),
        ("llama", "answers", "boolq", "rte", "its classes are A, B, and the adapter's are False, True"),
        ("llama", "answers", "openbookqa", "winogrande_s", None),
        ("bert", "options", "openbookqa", "rte", None),
    ],
)
def test_labels_count_where_they_mean_the_same(
    copies: Path, bases: dict[str, Path], tmp_path: Path, base: str, readout: str, inside: str, outside: str, said: Any
) -> None:
    named = ("--data", inside, "--data-dir", copies)
    train = ("--steps", 1, "--rank", 1, "--readout", readout, "--model", bases[base], "--quiet")
    _run("train", *named, *train, "--out", tmp_path / "adapter")
    adapter = ("--adapter", tmp_path / "adapter")
    _run("fit", *named, *adapter, "--quiet", "--prior", "1")
    result = run("evaluate", *named, *adapter, "--ood", outside, "--out", tmp_path / "report")
    assert result.exit_code == 0, result.stderr
    document = next(iter(json.loads((tmp_path / "report" / "metrics.json").read_text())["ood"].values()))
    assert (document["comparison"] is None) == (said is not None)
    assert said is None or said in document["labels_ignored"]
    assert said is None or said in result.stderr


def test_predict_by_name(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    """Also rows whose labels are hidden on the hub."""
    named = ("--data", "rte", "--data-dir", copies, "--quiet")
    adapter = ("--adapter", tmp_path / "adapter")
    _run("train", *named, "--steps", 1, "--rank", 1, "--model", bases["bert"], "--out", tmp_path / "adapter")
    _run("fit", *named, *adapter, "--prior", "1")
    out = tmp_path / "predictions.jsonl"
    _run("predict", *adapter, "--data", "rte:test", "--data-dir", copies, "--out", out, "--quiet")
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 6
    assert {record["label"] for record in records} <= {"entailment", "not entailment"}
    hidden = run("evaluate", *adapter, "--data", "rte:test", "--data-dir", copies, "--out", tmp_path / "report")
    said = "rte:test:1 has no label; the hub hides the labels of test: use rte:validation."
    assert error_line(hidden).endswith(said)


# What would be done in silence otherwise.


@pytest.fixture(scope="module")
def rte_adapter(copies: Path, bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rte") / "adapter"
    named = ("--data", "rte", "--data-dir", copies, "--quiet")
    _run("train", *named, "--steps", 1, "--rank", 1, "--model", bases["bert"], "--out", folder)
    _run("fit", *named, "--adapter", folder, "--prior", "1")
    return folder


@pytest.mark.parametrize("option", ["--data", "--validation"])
def test_labels_of_another_task_are_refused(copies: Path, rte_adapter: Path, tmp_path: Path, option: str) -> None:
    other = {"--data": "rte", "--data-dir": copies, "--out": tmp_path / "report"} | {option: "mrpc:train"}
    arguments = [part for pair in other.items() for part in pair]
    said = error_line(run("evaluate", "--adapter", rte_adapter, *arguments))
    assert "mrpc:train is another task: its classes are not equivalent, equivalent, and the adapter's" in said
    fit = ("--adapter", rte_adapter, "--data", "mrpc", "--data-dir", copies, "--out", tmp_path / "posterior")
    assert "mrpc:train is another task" in error_line(run("fit", *fit))


def test_a_temperature_chosen_on_what_is_evaluated(copies: Path, rte_adapter: Path, tmp_path: Path) -> None:
    named = ("--data", "rte", "--validation", "rte:validation[:3]", "--data-dir", copies, "--out", tmp_path / "report")
    result = run("evaluate", "--adapter", rte_adapter, *named)
    assert "warning: 3 rows of rte:validation[:3] stand in rte:validation too: the temperature is" in result.stderr


def test_other_data_keep_their_passage(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    named = ("--data", "openbookqa", "--data-dir", copies)
    adapter = tmp_path / "adapter"
    train = ("--steps", 1, "--rank", 1, "--readout", "options", "--model", bases["bert"], "--quiet")
    _run("train", *named, *train, "--out", adapter)
    _run("fit", *named, "--adapter", adapter, "--quiet", "--prior", "1")
    seen: list[str] = []
    scan = sys.modules["laplace_lora.commands.inputs"].scan

    def noted(source: Any, *arguments: Any, **options: Any) -> Any:
        found = scan(source, *arguments, **options)
        seen.append(f"{source}: {found.form.template}")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["laplace_lora.commands.inputs"], "scan", noted)
        outside = ("--ood", "boolq", "--ood", "arc_easy", "--out", tmp_path / "report", "--quiet")
        _run("evaluate", *named, "--adapter", adapter, *outside)
    assert "boolq:validation: {{ passage }}\n{{ question }}" in seen
    assert "arc_easy:validation: {{ question }}" in seen


def test_other_data_may_have_more_choices(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    named = ("--data", "winogrande_s", "--data-dir", copies)
    train = ("--steps", 1, "--rank", 1, "--model", bases["llama"], "--quiet")
    _run("train", *named, *train, "--out", tmp_path / "adapter")
    _run("fit", *named, "--adapter", tmp_path / "adapter", "--quiet", "--prior", "1")
    outside = ("--ood", "arc_easy", "--out", tmp_path / "report")
    result = run("evaluate", *named, "--adapter", tmp_path / "adapter", *outside)
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())["ood"]["arc_easy:validation"]
    assert found["comparison"] is None
    assert "its classes are A, B, C, D, and the adapter's are A, B" in found["labels_ignored"]


@pytest.mark.parametrize(
    ("base", "options", "said"),
    [
        ("llama", ("--padding-side", "foo"), "padding side 'foo' is neither left nor right; choose one."),
        ("bert", ("--padding-side", "left"), "encoders pool the first token and are padded on the right"),
        ("bert", ("--patience", 3), "--patience waits for less loss on --validation, and there is none; leave it out."),
        ("bert", ("--prompts", "paper"), "--prompts has no use where outputs are read by class; leave it out."),
        ("llama", ("--prompts", "paper", "--template", "{{ premise }}"), "--prompts has no use beside a template"),
        ("llama", ("--head-learning-rate", 0.1), "--head-learning-rate is for a new head, and none is trained here"),
        (
            "bert",
            ("--labels", "a,b,c"),
            "3 names are given by --labels, and rte:train has 2 classes; name each",
        ),
    ],
)
def test_options_without_use(
    copies: Path, bases: dict[str, Path], tmp_path: Path, base: str, options: tuple[Any, ...], said: str
) -> None:
    named = ("--data", "rte", "--data-dir", copies, "--model", bases[base], "--out", tmp_path / "out", "--dry-run")
    assert said in error_line(run("train", *named, *options))


def test_prompts_beside_those_of_the_training(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    named = ("--data", "openbookqa", "--data-dir", copies, "--quiet")
    _run("train", *named, "--steps", 1, "--rank", 1, "--model", bases["llama"], "--out", tmp_path / "adapter")
    fit = ("--adapter", tmp_path / "adapter", "--prior", "1")
    said = error_line(run("fit", *named, *fit, "--prompts", "successors"))
    assert "--prompts has no use beside a template that was given or saved with the adapter" in said
    _run("fit", *named, *fit, "--prompts", "paper")


@pytest.mark.parametrize("option", [("--readout", "class"), ("--answers", "A,B"), ("--max-length", 5)])
def test_show_needs_a_tokenizer_for_tokens(copies: Path, option: tuple[Any, ...]) -> None:
    said = error_line(run("tasks", "show", "rte", "--data-dir", copies, *option))
    assert said.endswith(f"{option[0]} needs a tokenizer; give --tokenizer DIR, or leave it out.")


def test_a_task_knows_its_classes(copies: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    """Also where the first rows are of few of them."""
    named = ("--data-dir", copies, "--model", bases["bert"], "--out", tmp_path / "out", "--dry-run", "--quiet")
    for name, classes in (("arc_challenge_5:train[:3]", 5), ("openbookqa:train[:2]", 4), ("trec:train[:2]", 6)):
        assert f"class_logits, {classes} classes" in _run("train", "--data", name, "--readout", "class", *named)


def test_a_folder_of_a_tasks_name_is_no_file(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copies / "nyu-mll")
    Path("rte").mkdir(exist_ok=True)
    assert "rte:validation, n = " in _run("tasks", "show", "rte", "--data-dir", copies)


def test_a_presets_prompts_are_not_a_files(bases: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"question": "the film", "choices": ["good", "bad"], "label": 0}\n' * 4)
    options = ("--data", data, "--readout", "answers", "--out", tmp_path / "out", "--dry-run", "--quiet")
    said = _run("train", "--preset", "successors", "--model", bases["llama"], *options)
    assert "is a file: the preset's prompts belong to tasks, and are not used" in said
