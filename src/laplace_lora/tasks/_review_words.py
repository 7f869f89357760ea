"""What the made reviews say, and how strongly.

Every number is a *valence* in logit units: how far the word alone moves log p(positive) - log p(negative).
Words whose valence lies near zero are there on purpose: people disagree about "unusual", "loud" or "simple".
"""


def _valences(text: str) -> tuple[tuple[str, float], ...]:
    """Read ``word number`` pairs separated by commas; a word may hold spaces.

    Args:
        text: The list.

    Returns:
        Pairs of word and valence.
    """
    pairs = (entry.strip().rsplit(" ", 1) for entry in text.replace("\n", " ").split(","))
    return tuple((word, float(number)) for word, number in pairs)


#: Adjectives that fit anything; every kind below is extended by them.
GENERAL = _valences(
    """excellent 2.5, wonderful 2.5, superb 2.6, outstanding 2.6, fantastic 2.5, great 2.1, lovely 2.0, good 1.5,
    pleasant 1.4, enjoyable 1.6, impressive 1.9, decent 0.9, fine 0.7, acceptable 0.4, okay 0.2, average -0.1,
    ordinary -0.2, unremarkable -0.5, so-so -0.4, mediocre -1.0, underwhelming -1.2, disappointing -1.7, poor -1.8,
    bad -1.8, awful -2.5, terrible -2.6, dreadful -2.6, horrible -2.5, appalling -2.7, unusual 0.1, surprising 0.3,
    different 0.0, peculiar -0.3, strange -0.4, unexpected 0.0, simple 0.1, memorable 1.0, bearable -0.3,
    passable 0.1, hard to judge 0.0"""
)

#: What can be said of each kind of noun, with its valence.
ADJECTIVES: dict[str, tuple[tuple[str, float], ...]] = {
    kind: GENERAL + _valences(words)
    for kind, words in {
        "person": """friendly 1.8, charming 2.0, helpful 1.9, attentive 1.8, patient 1.5, knowledgeable 1.7,
            courteous 1.6, professional 1.5, welcoming 1.9, sincere 1.3, gifted 2.0, rude -2.3, arrogant -2.1,
            dismissive -1.9, careless -1.8, impatient -1.4, grumpy -1.5, condescending -2.1, unhelpful -1.9,
            indifferent -1.1, absent-minded -0.8, talkative 0.0, quiet 0.1, formal 0.0, reserved -0.2, blunt -0.5,
            busy -0.3, strict -0.4, serious 0.1, young 0.0""",
        "thing": """sturdy 1.5, reliable 1.8, elegant 1.7, responsive 1.6, durable 1.6, handy 1.4, well made 1.9,
            comfortable 1.7, practical 1.3, flimsy -1.7, unreliable -2.0, clumsy -1.4, fragile -1.2, outdated -1.3,
            awkward -1.2, faulty -2.1, useless -2.4, ugly -1.6, heavy -0.3, small -0.2, plain -0.1, basic -0.3,
            compact 0.5, bulky -0.6, bright 0.3, minimalist 0.2, old-fashioned -0.2, colourful 0.4""",
        "food": """delicious 2.5, tasty 1.9, fresh 1.7, full of flavour 2.0, mouth-watering 2.4, well seasoned 1.6,
            home-made 0.7, bland -1.5, greasy -1.4, soggy -1.7, stale -1.9, overcooked -1.7, tasteless -2.0,
            inedible -2.6, lukewarm -1.2, spicy 0.1, rich 0.4, sweet 0.1, salty -0.5, filling 0.6, light 0.2,
            traditional 0.3""",
        "place": """spotless 1.9, cosy 1.8, spacious 1.5, peaceful 1.7, comfortable 1.7, inviting 1.8, airy 1.2,
            beautiful 2.2, filthy -2.5, cramped -1.6, shabby -1.6, dingy -1.7, noisy -1.3, run-down -1.8,
            draughty -1.2, smelly -2.0, old -0.2, dark -0.4, crowded -0.6, quiet 0.4, modern 0.5,
            old-fashioned 0.0, small -0.3, plain -0.2, lively 0.6""",
        "story": """gripping 2.1, moving 1.9, witty 1.8, clever 1.7, thoughtful 1.6, touching 1.7, captivating 2.3,
            inspiring 2.0, well paced 1.5, tedious -1.9, predictable -0.9, confusing -1.3, shallow -1.5, dull -1.8,
            pretentious -1.5, incoherent -2.0, forgettable -1.4, pointless -2.1, slow -0.4, dark 0.0, long -0.2,
            sentimental -0.2, intense 0.5, quirky 0.5, ambitious 0.7, loud -0.3, experimental 0.1, short -0.1""",
        "process": """quick 1.5, smooth 1.7, prompt 1.6, efficient 1.7, effortless 1.9, painless 1.6,
            well organised 1.7, slow -1.3, chaotic -1.9, frustrating -2.0, confusing -1.4,
            disorganised -1.8, exhausting -1.5,
            infuriating -2.4, complicated -1.0, formal 0.0, long -0.6, thorough 0.9, automatic 0.1, impersonal -0.7""",
        "price": """fair 1.3, reasonable 1.4, generous 1.4, very low 0.8, modest 0.5, steep -1.1, high -0.8,
            outrageous -2.3, too much -1.6, a bargain 1.9, the usual 0.0, hard to justify -1.3""",
    }.items()
}
# Prices take few of the general words ("the bill was gripping" is nobody's sentence).
ADJECTIVES["price"] = ADJECTIVES["price"][len(GENERAL) :] + _valences(
    "excellent 2.3, good 1.4, fine 0.7, acceptable 0.4, okay 0.2, average 0.0, bad -1.7, terrible -2.4, surprising -0.2"
)

#: Words before an adjective and the factor on its valence.
INTENSIFIERS = _valences("really 1.2, truly 1.25, remarkably 1.25, very 1.2, so 1.15, incredibly 1.35, extremely 1.35")
DOWNTONERS = _valences(
    "fairly 0.75, rather 0.85, somewhat 0.55, more or less 0.6, almost 0.6, sort of 0.5, mostly 0.75"
)

#: Hedges before a whole clause and the factor on its score.
HEDGES = _valences(
    """I suppose 0.6, I guess 0.6, perhaps 0.45, maybe 0.45, some would say that 0.35, it may be that 0.4,
    as far as I can tell 0.75, if I remember rightly 0.65, my friends insist that 0.5, in a way 0.5"""
)

#: Words that open a sentence and change nothing.
OPENERS = (
    "Honestly", "On the whole", "In the end", "To my mind", "This time", "Overall", "For what it is worth",
    "In my experience", "Looking back", "As a regular", "As a first-time customer", "All in all",
)  # fmt: skip

#: Closing judgements on the whole, with their score; the braces take the domain's words.
VERDICTS: tuple[tuple[str, float], ...] = (
    ("I would gladly {again}", 2.3),
    ("I cannot wait to {again}", 2.6),
    ("we will certainly {again}", 2.3),
    ("I recommend {subject} to everybody", 2.4),
    ("{subject} was worth every penny", 2.3),
    ("{subject} exceeded our hopes", 2.2),
    ("I was pleasantly surprised by {subject}", 1.8),
    ("I would probably {again}", 1.2),
    ("I might {again} one day", 0.5),
    ("{subject} did what it had to do", 0.5),
    ("{subject} grows on you", 0.8),
    ("I can see why some people love {subject}", 0.3),
    ("I am still not sure what to make of {subject}", -0.1),
    ("opinions about {subject} were divided in our family", 0.0),
    ("{subject} was about what I expected", 0.1),
    ("{subject} is not for everyone", -0.3),
    ("I had hoped for a little more from {subject}", -1.0),
    ("once was enough for me", -1.1),
    ("I see no reason to {again}", -1.4),
    ("I doubt that we will {again}", -1.4),
    ("{subject} was not worth the trouble", -1.8),
    ("I regret the money spent on {subject}", -2.2),
    ("nothing could make me {again}", -2.6),
    ("I would warn anybody against {subject}", -2.6),
)

#: Comparisons of one part with an expectation, with their score.
COMPARISONS: tuple[tuple[str, float], ...] = (
    ("far better than I expected", 2.1),
    ("better than the reviews suggest", 1.4),
    ("a little better than last year", 0.8),
    ("just as good as people say", 1.8),
    ("the highlight of the whole experience", 2.3),
    ("not as bad as I had feared", 0.6),
    ("much the same as before", 0.0),
    ("neither good nor bad", 0.0),
    ("good and bad in equal measure", 0.0),
    ("nothing out of the ordinary", -0.3),
    ("a matter of taste", 0.0),
    ("not quite what I expected", -0.7),
    ("less good than last year", -1.1),
    ("worse than the pictures suggest", -1.5),
    ("far below the usual standard", -2.1),
    ("the weakest point by far", -1.8),
    ("a long way from what we were promised", -1.8),
)
