"""One reading checks a whole file; batches of token ids are made one at a time."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.folders import bert_tokenizer, llama_tokenizer, write_jsonl
from laplace_lora.data import DataFile, Encoder, LabelReader, Row, RowFormat, layout_of, scan
from laplace_lora.data import scan as scan_function
from laplace_lora.data.scan import Example
from laplace_lora.errors import DataFileError

scan_module = __import__(scan_function.__module__, fromlist=["open_rows"])
ROWS = [{"text": "the film", "label": 0}, {"text": "a good film", "label": 2}, {"text": "dull", "label": 2}]


def _file(folder: Path, rows: list[Any], **options: Any) -> DataFile:
    return scan(write_jsonl(folder / "d.jsonl", rows), LabelReader(3), **options)


def _refusal(folder: Path, rows: list[Any], **options: Any) -> str:
    with pytest.raises(DataFileError) as caught:
        _file(folder, rows, **options)
    assert str(caught.value).endswith(".")
    return str(caught.value).removeprefix(str(folder / "d.jsonl"))


def test_counts(tmp_path: Path) -> None:
    file = _file(tmp_path, ROWS)
    assert len(file) == 3
    assert file.label_counts == (1, 0, 2)
    assert file.labelled
    assert file.majority == pytest.approx(2 / 3)
    assert list(file) == [
        Example(1, "the film", None, 0),
        Example(2, "a good film", None, 2),
        Example(3, "dull", None, 2),
    ]


def test_labels_ignored_optional_and_required(tmp_path: Path) -> None:
    bare = [{"text": "a"}, {"text": "b"}]
    assert [example.label for example in _file(tmp_path, [{"text": "a", "label": "?"}], labels="ignored")] == [None]
    assert not _file(tmp_path, bare, labels="optional").labelled
    assert _refusal(tmp_path, bare).startswith(":1 has no label")
    assert _refusal(tmp_path, [*ROWS, *bare]).startswith(":4 has no label")
    assert _refusal(tmp_path, [*ROWS, *bare], labels="optional").startswith(":4: some rows have labels")
    assert _refusal(tmp_path, [*bare, *ROWS], labels="optional").startswith(":3: some rows have labels")


@pytest.mark.parametrize("form", [None, RowFormat("{{ text }}")])
def test_empty_files(form: RowFormat | None, tmp_path: Path) -> None:
    assert _refusal(tmp_path, [], form=form).startswith(" has no rows")


def test_the_first_bad_row_is_named(tmp_path: Path) -> None:
    assert _refusal(tmp_path, [*ROWS, {"text": "a", "label": 3}]).startswith(":4: the label 3")
    assert _refusal(tmp_path, [*ROWS, {"sentence": "a", "label": 1}]).startswith(":4 lacks the field 'text'")
    assert "the template '{{' is malformed" in _refusal(tmp_path, ROWS, form=RowFormat("{{"))


def test_batches(tmp_path: Path) -> None:
    encoder = Encoder(bert_tokenizer(), 24, "right", 64)
    batches = encoder.batches(_file(tmp_path, ROWS), 2)
    assert len(batches) == 2
    first, second = batches
    assert first["labels"].tolist() == [0, 2]
    assert first["input_ids"].shape == (2, 5)
    assert first["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert second["input_ids"].shape == (1, 3)
    # Again from the start, and as one by one.
    assert [torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, batches, strict=True)] == [True, True]


def test_pairs_are_encoded_as_the_tokenizer_does(tmp_path: Path) -> None:
    rows = [{"premise": "the film", "hypothesis": "good", "label": 0}, {"premise": "a", "hypothesis": "b", "label": 1}]
    batch = next(iter(Encoder(bert_tokenizer(), None, "right").batches(_file(tmp_path, rows), 2)))
    expected = bert_tokenizer()(["the film", "a"], ["good", "b"], padding=True, return_tensors="pt")
    assert set(batch) == {*expected, "labels"}
    assert all(torch.equal(batch[key], value) for key, value in expected.items())


def test_padding_on_the_left(tmp_path: Path) -> None:
    tokenizer = llama_tokenizer()
    tokenizer.pad_token = "</s>"
    batch = next(iter(Encoder(tokenizer, None, "left").batches(_file(tmp_path, ROWS), 2)))
    assert batch["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_that_ends_in_a_closing_token_keeps_it(side: str) -> None:
    """What is read is that token; a long text loses what stands before it, and not its beginning."""
    tokenizer = llama_tokenizer()
    tokenizer.pad_token = "</s>"
    texts = ["the film was good</s>", "the</s>", "a film was very very very bad and dull</s>"]
    examples = [Example(line, text, None, None) for line, text in enumerate(texts, 1)]
    encoder = Encoder(tokenizer, 5, side, layout=layout_of("answer_tokens"), continues=True)
    batch = encoder.encode(examples, "f")
    words = [tokenizer.convert_ids_to_tokens(ids[mask.bool()]) for ids, mask in _pairs(batch)]
    assert words == [
        ["the", "film", "was", "good", "</s>"],
        ["the", "</s>"],
        ["a", "film", "was", "very", "</s>"],
    ]
    assert encoder.truncated == 1
    # Without the limit, and as the tokenizer itself has it.
    free = Encoder(tokenizer, None, side, layout=layout_of("answer_tokens"), continues=True).encode(examples, "f")
    for text, (ids, mask) in zip(texts, _pairs(free), strict=True):
        assert ids[mask.bool()].tolist() == tokenizer(text)["input_ids"]


def _pairs(batch: Any) -> Any:
    return zip(batch["input_ids"], batch["attention_mask"], strict=True)


def test_truncated_inputs_are_counted(tmp_path: Path) -> None:
    encoder = Encoder(bert_tokenizer(), 4, "right")
    assert [batch["input_ids"].shape[1] for batch in encoder.batches(_file(tmp_path, ROWS), 1)] == [4, 4, 3]
    assert encoder.truncated == 1


def _encode_refusal(encoder: Encoder, *texts: str, pair: str | None = None) -> str:
    with pytest.raises(DataFileError) as caught:
        encoder.encode([Example(line, text, pair, None) for line, text in enumerate(texts, 5)], "f")
    assert str(caught.value).endswith(".")
    return str(caught.value)


def test_texts_that_cannot_be_encoded() -> None:
    tokenizer = llama_tokenizer()
    tokenizer.pad_token = "</s>"
    # This vocabulary has no entry for unknown words, and a text of blanks has no words.
    assert _encode_refusal(Encoder(tokenizer, None, "right"), "the", "zebra").startswith("f:5 to 6 cannot be made into")
    assert _encode_refusal(Encoder(tokenizer, None, "right"), "the", "\u200a").startswith("f:6 has no tokens")
    too_short = _encode_refusal(Encoder(bert_tokenizer(), 2, "right"), "the", pair="film")
    assert too_short.startswith("f:5 cannot be cut to 2 tokens")
    foreign = _encode_refusal(Encoder(bert_tokenizer(), None, "right", 6), "the film")
    assert foreign.startswith("f:5 holds token 6, and the model has 6 embeddings")


def test_no_more_than_a_batch_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are drawn as batches are; what was drawn before has been let go."""
    drawn = 0
    real = scan_module.open_rows

    def counting(path: Path, name: str | None = None) -> Iterator[Row]:
        nonlocal drawn
        for row in real(path, name):
            drawn += 1
            yield row

    file = _file(tmp_path, [ROWS[0]] * 1000)
    monkeypatch.setattr(scan_module, "open_rows", counting)
    for index, _ in enumerate(Encoder(bert_tokenizer(), None, "right").batches(file, 10), 1):
        assert drawn == 10 * index
    assert drawn == 1000


def test_a_large_file_is_scanned_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    line = '{"text": "' + "the film " * 500 + '", "label": 1}\n'
    path.write_text(line * 2000)  # 9 MB
    tracemalloc.start()
    try:
        assert len(scan(path, LabelReader(3))) == 2000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
