"""What the made reviews are about: domains, the things in them that are judged, and facts that judge nothing."""

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
