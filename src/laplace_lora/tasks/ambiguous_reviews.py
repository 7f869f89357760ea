"""Short reviews whose true probability of being called positive is known by construction.

Real annotation is noisy: people disagree about lukewarm, mixed or merely factual sentences, and they slip. Here both
are built in. Every sentence has a score s, the sum of what its words say (valences in
:mod:`laplace_lora.tasks._review_words`), and its label is *drawn*:

    p(positive | sentence) = SLIP + (1 - 2 SLIP) sigmoid(SHARPNESS s),     label ~ Bernoulli(p).

Rules of the score, all visible in the sentence itself:

- an adjective counts its valence, times the factor of an intensifier or a downtoner before it;
- a negated adjective counts :data:`NEGATION` (for a positive word) or :data:`DOUBLE_NEGATIVE` (for a negative word)
  times its valence: "not good" is nearly bad, "not bad" only faintly good; "anything but" turns it over in full;
- in "A, but B" and "although A, B" the second part weighs more (:data:`CONCESSION` against :data:`MAIN`);
  in "A, and B" both weigh :data:`JOINED`;
- a hedge multiplies the score of what follows; openers, circumstances and plain facts count nothing.

So the best possible accuracy is well below one, a model that reports certainty is wrong about the world, and the
divergence from the truth, KL(p_true || p_model), can be measured beside the usual calibration error.

The text depends on nothing but ``seed``: only :meth:`random.Random.random` is used, whose stream Python guarantees.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from laplace_lora.errors import LaplaceLoRAError
from laplace_lora.tasks import _review_domains as domains
from laplace_lora.tasks import _review_words as words

LABEL_NAMES = ("negative", "positive")

#: Probability that an annotator ticks the wrong box, whatever the sentence says.
SLIP = 0.06
#: How fast agreement grows with the score: at 3, five people in six agree on "fine" and nearly all on "great".
SHARPNESS = 3.0
NEGATION = -0.8
DOUBLE_NEGATIVE = -0.45
CONCESSION = 0.45
MAIN = 0.85
JOINED = 0.75

_MOST_TRIES_PER_SENTENCE = 50

_T = TypeVar("_T")


class Review(NamedTuple):
    """One sentence with its drawn label.

    Attributes:
        text: The sentence.
        label: 0 (negative) or 1 (positive), drawn from ``probability``.
        probability: The true p(label = 1 | text), between SLIP and 1 - SLIP.
    """

    text: str
    label: int
    probability: float


class _Scored(NamedTuple):
    """A piece of text with its score in logit units."""

    text: str
    score: float


def make_reviews(n: int, seed: int = 0) -> list[Review]:
    """Make distinct reviews with labels drawn from their known probabilities.

    Args:
        n: Number of reviews.
        seed: Seed of the sentences and of their labels.

    Returns:
        ``n`` reviews, no sentence twice, in random order.

    Raises:
        LaplaceLoRAError: ``n`` is negative, or so large that the grammar runs out of new sentences.
    """
    if n < 0:
        raise LaplaceLoRAError(f"cannot make {n} reviews; give a number of 0 or more.")
    # A string seed is hashed by SHA-512, so that neighbouring seeds share nothing.
    rng = random.Random(f"ambiguous reviews {seed}")
    reviews: dict[str, Review] = {}
    for _ in range(_MOST_TRIES_PER_SENTENCE * n):
        if len(reviews) == n:
            break
        text, score = _sentence(rng)
        if text in reviews:
            continue
        probability = SLIP + (1.0 - 2.0 * SLIP) / (1.0 + math.exp(-SHARPNESS * score))
        reviews[text] = Review(text, int(rng.random() < probability), probability)
    if len(reviews) < n:
        raise LaplaceLoRAError(f"the grammar yielded only {len(reviews)} distinct sentences; ask for fewer than {n}.")
    return list(reviews.values())


def make_splits(sizes: Mapping[str, int], seed: int = 0) -> dict[str, list[Review]]:
    """Make several parts that share no sentence, such as training and test data.

    Args:
        sizes: Number of reviews per part, by name.
        seed: Seed of the one draw that is cut into the parts.

    Returns:
        The parts, by name.
    """
    reviews = iter(make_reviews(sum(sizes.values()), seed))
    return {name: [next(reviews) for _ in range(size)] for name, size in sizes.items()}


def _pick(rng: random.Random, items: Sequence[_T]) -> _T:
    """Choose one item uniformly.

    Args:
        rng: Source of randomness.
        items: What to choose from.

    Returns:
        The item.
    """
    return items[int(rng.random() * len(items))]


def _sentence(rng: random.Random) -> _Scored:
    """Make one whole sentence.

    Args:
        rng: Source of randomness.

    Returns:
        The sentence, capitalised and with its full stop, and its score.
    """
    domain = _pick(rng, domains.DOMAINS)
    frame = _by_weight(rng, _FRAMES)
    text, score = frame(rng, domain)
    if not text.endswith("."):
        text = text[0].upper() + text[1:] + "."
    return _Scored(text, score)


def _by_weight(rng: random.Random, frames: "Sequence[tuple[float, _Frame]]") -> "_Frame":
    """Choose a frame in proportion to its weight.

    Args:
        rng: Source of randomness.
        frames: Weights (summing to one) and frames.

    Returns:
        The frame.
    """
    left = rng.random()
    for weight, frame in frames:
        left -= weight
        if left < 0.0:
            return frame
    return frames[-1][1]


def _clause(rng: random.Random, noun: domains.Noun) -> _Scored:
    """Say one thing about one noun.

    Args:
        rng: Source of randomness.
        noun: What it is about.

    Returns:
        A clause that starts in lower case, and its score.
    """
    adjective, valence = _pick(rng, words.ADJECTIVES[noun.kind])
    verb = "were" if noun.plural else "was"
    draw = rng.random()
    if draw < 0.03:
        return _Scored(f"the {noun.text} {verb} anything but {adjective}", -valence)
    if draw < 0.15:
        negated = (
            f"the {noun.text} {verb} not {adjective}",
            f"the {noun.text} {verb} hardly {adjective}",
            f"I would not call the {noun.text} {adjective}",
            f"I did not find the {noun.text} {adjective}",
            f"nobody in our group found the {noun.text} {adjective}",
        )
        factor = NEGATION if valence > 0.0 else DOUBLE_NEGATIVE
        return _Scored(_pick(rng, negated), factor * valence)
    # "very a bargain", "somewhat so-so": only a single plain word takes an adverb.
    if draw < 0.50 and adjective.isalpha():
        adverb, factor = _pick(rng, words.INTENSIFIERS if draw < 0.34 else words.DOWNTONERS)
        adjective, valence = f"{adverb} {adjective}", factor * valence
    stated = (
        f"the {noun.text} {verb} {adjective}",
        f"the {noun.text} {verb} {adjective}",
        f"the {noun.text} seemed {adjective}",
        f"I found the {noun.text} {adjective}",
        f"we thought the {noun.text} {verb} {adjective}",
        f"my partner called the {noun.text} {adjective}",
    )
    return _Scored(_pick(rng, stated), valence)


def _two_nouns(rng: random.Random, domain: domains.Domain) -> tuple[domains.Noun, domains.Noun]:
    """Choose two different nouns of one domain.

    Args:
        rng: Source of randomness.
        domain: The domain.

    Returns:
        The nouns.
    """
    first = int(rng.random() * len(domain.nouns))
    second = int(rng.random() * (len(domain.nouns) - 1))
    return domain.nouns[first], domain.nouns[second + (second >= first)]


def _plain(rng: random.Random, domain: domains.Domain) -> _Scored:
    """One clause, with an opener or a circumstance that changes nothing."""
    text, score = _clause(rng, _pick(rng, domain.nouns))
    draw = rng.random()
    if draw < 0.35:
        text = f"{_pick(rng, words.OPENERS)}, {text}"
    elif draw < 0.75:
        text = f"{text} {_pick(rng, domain.times)}"
    return _Scored(text, score)


def _mixed(rng: random.Random, domain: domains.Domain) -> _Scored:
    """Two clauses set against each other; the main one weighs more."""
    noun, other = _two_nouns(rng, domain)
    conceded, main = _clause(rng, noun), _clause(rng, other)
    texts = (
        f"{conceded.text}, but {main.text}",
        f"although {conceded.text}, {main.text}",
        f"{conceded.text}; {main.text}, though",
        f"even if {conceded.text}, {main.text}",
    )
    return _Scored(_pick(rng, texts), CONCESSION * conceded.score + MAIN * main.score)


def _joined(rng: random.Random, domain: domains.Domain) -> _Scored:
    """Two clauses side by side."""
    noun, other = _two_nouns(rng, domain)
    first, second = _clause(rng, noun), _clause(rng, other)
    return _Scored(f"{first.text}, and {second.text}", JOINED * (first.score + second.score))


def _hedged(rng: random.Random, domain: domains.Domain) -> _Scored:
    """A clause that the writer does not quite stand by."""
    hedge, factor = _pick(rng, words.HEDGES)
    text, score = _clause(rng, _pick(rng, domain.nouns))
    return _Scored(f"{hedge} {text}", factor * score)


def _verdict(rng: random.Random, domain: domains.Domain) -> _Scored:
    """A judgement on the whole, alone or after a clause."""
    template, score = _pick(rng, words.VERDICTS)
    text = template.format(subject=domain.subject, again=domain.again)
    if rng.random() < 0.5:
        reason = _clause(rng, _pick(rng, domain.nouns))
        return _Scored(f"{reason.text}, and {text}", JOINED * (reason.score + score))
    return _Scored(text, score)


def _comparison(rng: random.Random, domain: domains.Domain) -> _Scored:
    """A part measured against an expectation."""
    noun = _pick(rng, domain.nouns)
    phrase, score = _pick(rng, words.COMPARISONS)
    text = f"the {noun.text} {'were' if noun.plural else 'was'} {phrase}"
    if rng.random() < 0.4:
        text = f"{_pick(rng, words.OPENERS)}, {text}"
    return _Scored(text, score)


def _fact(rng: random.Random, domain: domains.Domain) -> _Scored:
    """A sentence without any opinion: its label is a coin toss."""
    return _Scored(_pick(rng, domain.facts), 0.0)


_Frame = Callable[[random.Random, domains.Domain], _Scored]

_FRAMES: tuple[tuple[float, _Frame], ...] = (
    (0.38, _plain),
    (0.15, _mixed),
    (0.12, _joined),
    (0.06, _hedged),
    (0.14, _verdict),
    (0.11, _comparison),
    (0.04, _fact),
)
