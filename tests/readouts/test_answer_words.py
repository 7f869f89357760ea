"""Words as answers: the token that follows the prompt's own tokens, for every way of writing blanks."""

import functools

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from laplace_lora import LaplaceLoRAError
from laplace_lora.readouts import AnswerTokens

_TEXTS = ["Answer: yes", "Answer: no", "Answer:yes", "Answer:no", "Answer: A", "Answer:A", "Question", "(yes", "(no"]


@functools.cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a small tokenizer: words; or pairs of bytes or characters, with blanks before words."""
    if kind == "words":
        words = {"<unk>": 0, "Answer": 1, ":": 2, "yes": 3, "no": 4}
        made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator(_TEXTS * 20, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=made)
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always", split=True), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>"], initial_alphabet=["=", "\n"], show_progress=False
    )
    made.train_from_iterator(_TEXTS * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def tokens(kind: str, words: list[str], prompt: str) -> list[str]:
    readout = AnswerTokens.of_words(tokenizer(kind), words, prompt)
    return tokenizer(kind).convert_ids_to_tokens(list(readout.token_ids))


@pytest.mark.parametrize(
    ("kind", "prompt", "expected"),
    [
        ("words", "Answer:", ["yes", "no"]),
        ("words", "Answer: ", ["yes", "no"]),
        ("bytes", "Answer:", ["Ġyes", "Ġno"]),
        ("metaspace", "Answer:", ["▁yes", "▁no"]),
        # The blank is a token of the prompt already, and what follows it has none.
        ("bytes", "Answer: ", ["yes", "no"]),
        ("metaspace", "Answer: ", ["yes", "no"]),
        ("bytes", "Answer:\n", ["yes", "no"]),
        ("metaspace", "Answer:\n", ["yes", "no"]),
        ("bytes", "", ["yes", "no"]),
    ],
)
def test_what_follows_the_prompt(kind: str, prompt: str, expected: list[str]) -> None:
    assert tokens(kind, ["yes", "no"], prompt) == expected


def test_without_a_blank_where_one_makes_several_tokens() -> None:
    made = tokenizer("bytes")
    assert len(made("( yes", add_special_tokens=False)["input_ids"]) == 2
    assert tokens("bytes", ["yes", "Q"], "(") == ["yes", "Q"]
    with pytest.raises(LaplaceLoRAError):
        AnswerTokens.of_words(made, ["yes", "Quest"], "(")


@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_several_tokens_are_refused_and_shown(kind: str) -> None:
    with pytest.raises(LaplaceLoRAError, match=r"'yesno' is \['yes', 'no'\].*'no' is .*; choose other words"):
        AnswerTokens.of_words(tokenizer(kind), ["yesno", "no"])


def test_unknown_words_are_refused() -> None:
    with pytest.raises(LaplaceLoRAError, match=r"'perhaps' is \['<unk>'\].*choose other words"):
        AnswerTokens.of_words(tokenizer("words"), ["yes", "perhaps"])


@pytest.mark.parametrize("words", [["yes", "yes"], ["yes", ""], ["yes", " "]])
def test_words_that_are_no_two_answers(words: list[str]) -> None:
    with pytest.raises(LaplaceLoRAError, match="choose other words"):
        AnswerTokens.of_words(tokenizer("bytes"), words)


@pytest.mark.parametrize("words", [[], ["yes"]])
def test_fewer_than_two_words(words: list[str]) -> None:
    with pytest.raises(LaplaceLoRAError, match="give one per class"):
        AnswerTokens.of_words(tokenizer("bytes"), words)
