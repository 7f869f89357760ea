"""The vocabulary of the made reviews: what is reviewed, what is said of it, and how strongly.

Every number is a *valence* in logit units: how far the word alone moves log p(positive) - log p(negative).
Words whose valence lies near zero are there on purpose: people disagree about "unusual", "loud" or "simple".
"""

from typing import NamedTuple


class Noun(NamedTuple):
    """Something a review can speak about.

    Attributes:
        text: The words after "the".
        kind: Key into :data:`ADJECTIVES`, which decides what can be said of it.
        plural: Whether it takes "were" instead of "was".
    """

    text: str
    kind: str
    plural: bool


class Domain(NamedTuple):
    """One kind of review.

    Attributes:
        subject: The whole thing under review, with its article.
        again: What a satisfied customer would do again, as a bare infinitive.
        nouns: Parts that can be praised or blamed.
        times: Circumstances that carry no opinion, to end a sentence with.
        facts: Whole sentences that carry no opinion.
    """

    subject: str
    again: str
    nouns: tuple[Noun, ...]
    times: tuple[str, ...]
    facts: tuple[str, ...]


def _nouns(**by_kind: str) -> tuple[Noun, ...]:
    """Read nouns from comma-separated lists; a trailing ``+`` marks a plural.

    Args:
        **by_kind: One list per kind.

    Returns:
        The nouns, in the order given.
    """
    return tuple(
        Noun(word.rstrip("+"), kind, word.endswith("+"))
        for kind, words in by_kind.items()
        for word in words.split(", ")
    )


DOMAINS: tuple[Domain, ...] = (
    Domain(
        "the film",
        "watch it again",
        _nouns(
            story="plot, ending, dialogue, opening scene, final hour, love story, soundtrack, script, camera work, "
            "jokes+",
            person="lead actor, villain, young heroine, narrator",
        ),
        ("on a rainy Sunday", "at the late screening", "with my sister", "on the big screen", "the second time round"),
        (
            "It runs for a little over two hours.",
            "The story is set in Lisbon in the sixties.",
            "We saw it at the cinema near the station.",
            "It is based on a novel from the nineties.",
            "The director has made four films before this one.",
            "There are subtitles for most of the second half.",
        ),
    ),
    Domain(
        "the restaurant",
        "eat here again",
        _nouns(
            food="soup, grilled fish, lamb, bread, salad, chocolate cake, noodles+, house wine, vegetables+, coffee",
            person="waiter, chef, staff at the door",
            place="dining room, terrace",
            process="service",
            price="prices+, bill",
        ),
        ("on our second visit", "on a busy Friday night", "at lunch time", "when we came in March", "for my birthday"),
        (
            "We ordered the fish and a bottle of water.",
            "The kitchen closes at ten on weekdays.",
            "They moved to a new street last autumn.",
            "There were six of us at the table.",
            "The menu changes with the season.",
            "I had the soup and my brother had the lamb.",
        ),
    ),
    Domain(
        "the hotel",
        "stay here again",
        _nouns(
            place="room, lobby, bathroom, pool area, garden, view from the balcony",
            person="receptionist, manager, cleaning staff",
            thing="bed, shower, air conditioning, furniture",
            food="breakfast",
            process="check-in, airport shuttle",
            price="room rate",
        ),
        (
            "in the middle of July",
            "during our weekend there",
            "on the first night",
            "off season",
            "after a long flight",
        ),
        (
            "We stayed for three nights in May.",
            "The hotel is ten minutes from the harbour.",
            "Our room was on the fourth floor.",
            "Breakfast is served from seven to ten.",
            "We booked two single rooms by telephone.",
            "It used to be an old post office.",
        ),
    ),
    Domain(
        "the book",
        "read it again",
        _nouns(
            story="first chapter, last chapter, main character's journey, humour, writing, twist, middle part, "
            "translation, poems+",
            thing="cover, binding",
            person="detective, author",
        ),
        ("on the train to work", "over the holidays", "in one sitting", "for my reading group", "as a bedtime read"),
        (
            "It has about four hundred pages.",
            "I borrowed a copy from the library.",
            "The author lives in a village in Wales.",
            "It is the third part of a series.",
            "The chapters alternate between two sisters.",
            "My copy is the paperback from last spring.",
        ),
    ),
    Domain(
        "the phone",
        "buy it again",
        _nouns(
            thing="screen, battery, camera, speaker, charger, buttons+, fingerprint sensor, keyboard, casing",
            process="set-up, software update, repair",
            price="asking price",
        ),
        (
            "after three months of use",
            "in bright sunlight",
            "on a long trip",
            "out of the box",
            "after the last update",
        ),
        (
            "It arrived with a cable and a short manual.",
            "I use it mostly for calls and maps.",
            "The model is sold in grey and in blue.",
            "It replaced the one I bought in 2019.",
            "The box also contains a spare cover.",
            "My wife has the larger version.",
        ),
    ),
    Domain(
        "the app",
        "pay for it again",
        _nouns(
            thing="interface, search box, calendar view, dark mode, offline mode, notifications+, export function",
            process="sign-up, installation, customer support, migration from the old version",
            price="subscription fee",
        ),
        ("on my tablet", "after the redesign", "on a slow connection", "during the trial month", "at our office"),
        (
            "It needs an account and an internet connection.",
            "I installed it on two computers.",
            "The trial lasts for thirty days.",
            "Our team has used it since January.",
            "It keeps its files in one folder.",
            "The latest version came out on Monday.",
        ),
    ),
    Domain(
        "the concert",
        "go to hear them again",
        _nouns(
            person="singer, drummer, conductor, audience, security staff",
            story="set list, second half, encore, light show, opening act, new songs+",
            place="hall, area around the stage",
            process="entry, cloakroom service",
            price="ticket price",
        ),
        ("from where we stood", "on the second evening", "in the open air", "despite the rain", "from the back row"),
        (
            "The band played for ninety minutes.",
            "Doors opened at half past seven.",
            "We had seats in the tenth row.",
            "It was the last date of the tour.",
            "They played six songs from the new album.",
            "The hall holds about two thousand people.",
        ),
    ),
    Domain(
        "the course",
        "sign up again",
        _nouns(
            person="teacher, tutor, other students+, guest speaker",
            story="lectures+, reading list, final project, course book, examples+, weekly quizzes+",
            process="registration, grading, feedback on homework",
            price="course fee",
        ),
        ("in the spring term", "for a beginner like me", "week after week", "in the evening group", "towards the end"),
        (
            "It takes eight weeks with two lessons a week.",
            "There were fourteen people in my group.",
            "The last lesson is a written test.",
            "I took it alongside my job.",
            "Lessons are recorded and kept for a year.",
            "The course is taught in English and French.",
        ),
    ),
    Domain(
        "the train journey",
        "travel this way again",
        _nouns(
            thing="seats+, tables+, heating, wireless connection, display boards+",
            person="conductor on board, ticket inspector, passengers around us+",
            place="carriage, waiting room, dining car",
            process="boarding, connection in Cologne, booking",
            food="sandwiches+",
            price="fare",
        ),
        (
            "on the way to Vienna",
            "in the early morning",
            "on the overnight leg",
            "just before Christmas",
            "in second class",
        ),
        (
            "The train leaves at nine from platform four.",
            "We changed once, at the border.",
            "The journey took five hours and a half.",
            "I had a window seat in the last carriage.",
            "The line was built a hundred years ago.",
            "They stop twice before the coast.",
        ),
    ),
    Domain(
        "the clinic",
        "make an appointment here again",
        _nouns(
            person="doctor, nurse, dentist, physiotherapist, woman at the desk",
            place="waiting area, consulting room, entrance",
            process="appointment, treatment, follow-up call, paperwork",
            thing="equipment, online portal",
            price="invoice",
        ),
        ("at my last check-up", "on a Monday morning", "with a nervous child", "after the operation", "this winter"),
        (
            "The clinic is on the second floor, above the bakery.",
            "I went there for a routine check.",
            "They are closed on Wednesday afternoons.",
            "You have to bring your insurance card.",
            "I have an appointment once a year.",
            "The practice was taken over in June.",
        ),
    ),
    Domain(
        "the museum",
        "come here again",
        _nouns(
            story="main exhibition, audio guide, children's trail, film in the basement, modern collection, labels+",
            place="entrance hall, sculpture garden, upper floor, gift shop",
            person="guide, guards+, volunteers+",
            food="cake in the café",
            price="entrance fee",
        ),
        (
            "on a crowded Sunday",
            "with two small children",
            "during the half-term week",
            "late in the day",
            "last month",
        ),
        (
            "Most of the paintings date from the last century.",
            "The tour starts every hour at the main door.",
            "We spent the afternoon there in October.",
            "The building was a school until 1970.",
            "Bags have to be left in a locker.",
            "There is a second entrance by the river.",
        ),
    ),
    Domain(
        "the online shop",
        "order here again",
        _nouns(
            thing="jacket, shoes+, wrapping, zip, fabric, desk lamp, backpack, size chart",
            process="delivery, return, payment, refund",
            person="courier, person on the hotline",
            price="shipping costs+, discount",
        ),
        (
            "for a last-minute gift",
            "in the summer sale",
            "on my third order",
            "for the second time",
            "during the holidays",
        ),
        (
            "The parcel came on Thursday in a brown box.",
            "I ordered two sizes and kept one.",
            "They ship from a warehouse in Poland.",
            "The order number was in the second e-mail.",
            "I paid by card on the website.",
            "The jacket is made of wool and cotton.",
        ),
    ),
)


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
