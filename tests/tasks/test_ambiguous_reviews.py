"""The made reviews: what is known of them is true, and they are what they are said to be."""

import hashlib
import math
import re

import numpy as np
import pytest

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.tasks import LABEL_NAMES, Review, make_reviews, make_splits
from laplace_lora.tasks import _review_domains as domains
from laplace_lora.tasks import _review_words as words
from laplace_lora.tasks import ambiguous_reviews as task


@pytest.fixture(scope="module")
def many():
    return make_reviews(20_000, seed=1)


def by_text(many, text):
    return [review.probability for review in many if review.text == text]


def test_sentences_are_distinct_and_whole(many):
    assert len({review.text for review in many}) == len(many)
    for review in many:
        assert re.fullmatch(r"[A-Z][^{}]*[a-zé0-9]\.", review.text), review.text
        assert "  " not in review.text
        assert review.label in (0, 1)


def test_a_sentence_has_one_probability_whatever_the_seed(many):
    known = {review.text: review.probability for review in many}
    again = [review for review in make_reviews(20_000, seed=2) if review.text in known]
    assert len(again) > 500
    for review in again:
        assert review.probability == pytest.approx(known[review.text])


def test_labels_are_drawn_from_the_probabilities(many):
    probability = np.array([review.probability for review in many])
    label = np.array([review.label for review in many])
    for low in np.arange(0.0, 1.0, 0.1):
        inside = (probability >= low) & (probability < low + 0.1)
        if inside.sum() > 100:
            spread = math.sqrt((probability * (1 - probability))[inside].sum()) / inside.sum()
            assert label[inside].mean() == pytest.approx(probability[inside].mean(), abs=4 * spread)


def test_probabilities_leave_room_for_slips(many):
    probability = np.array([review.probability for review in many])
    assert probability.min() >= task.SLIP
    assert probability.max() <= 1 - task.SLIP
    assert (np.abs(probability - 0.5) < 0.05).mean() > 0.05


def test_the_best_accuracy_is_well_below_one(many):
    probability = np.array([review.probability for review in many])
    assert 0.80 < np.maximum(probability, 1 - probability).mean() < 0.88
    assert probability.mean() == pytest.approx(0.5, abs=0.03)


def test_the_vocabulary_is_varied(many):
    vocabulary = {word for review in many for word in re.findall(r"[a-zé'-]+", review.text.lower())}
    assert len(vocabulary) > 600


def test_a_seed_fixes_text_and_labels_forever():
    lines = "\n".join(f"{r.text}\t{r.label}\t{r.probability:.12f}" for r in make_reviews(300, seed=0))
    # A change of the grammar changes every published figure of the demo: it has to be made on purpose.
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == "9c55a9a95624bb2b"


def test_seeds_differ():
    assert make_reviews(5, seed=0) != make_reviews(5, seed=1)
    assert make_reviews(5, seed=0) == make_reviews(5, seed=0)


def test_splits_share_nothing():
    parts = make_splits({"train": 300, "validation": 50, "test": 200}, seed=3)
    assert {name: len(part) for name, part in parts.items()} == {"train": 300, "validation": 50, "test": 200}
    texts = [review.text for part in parts.values() for review in part]
    assert len(set(texts)) == 550


def test_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(task, "_FRAMES", ((1.0, task._fact),))
    with pytest.raises(LaplaceLoRAError, match="ask for fewer"):
        make_reviews(1000)
    with pytest.raises(LaplaceLoRAError, match="0 or more"):
        make_reviews(-1)
    assert make_reviews(0) == []


class Scripted:
    """A source of randomness that says what it is told."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random(self):
        return self.draws.pop(0)


NOUN = domains.Noun("soup", "food", False)
PLURAL = domains.Noun("noodles", "food", True)


def at(items, wanted):
    """The draw that makes ``_pick`` choose the item."""
    names = [item if isinstance(item, str) else item[0] for item in items]
    return (names.index(wanted) + 0.5) / len(names)


def test_a_negated_word():
    good = at(words.ADJECTIVES["food"], "delicious")
    text, score = task._clause(Scripted(good, 0.05, 0.0), NOUN)
    assert text == "the soup was not delicious"
    assert score == task.NEGATION * dict(words.ADJECTIVES["food"])["delicious"]
    bad = at(words.ADJECTIVES["food"], "inedible")
    text, score = task._clause(Scripted(bad, 0.05, 0.0), PLURAL)
    assert text == "the noodles were not inedible"
    assert score == task.DOUBLE_NEGATIVE * dict(words.ADJECTIVES["food"])["inedible"] > 0
    text, score = task._clause(Scripted(good, 0.01), NOUN)
    assert (text, score) == ("the soup was anything but delicious", -dict(words.ADJECTIVES["food"])["delicious"])


def test_a_plain_word_counts_its_valence():
    text, score = task._clause(Scripted(at(words.ADJECTIVES["food"], "bland"), 0.99, 0.0), NOUN)
    assert (text, score) == ("the soup was bland", -1.5)


def test_words_are_listed_once_per_kind():
    for kind, adjectives in words.ADJECTIVES.items():
        names = [name for name, _ in adjectives]
        assert len(names) == len(set(names)), kind
    for domain in domains.DOMAINS:
        assert {noun.kind for noun in domain.nouns} <= set(words.ADJECTIVES)


def test_names():
    assert LABEL_NAMES == ("negative", "positive")
    assert Review._fields == ("text", "label", "probability")
