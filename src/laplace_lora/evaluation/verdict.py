"""Say in plain sentences what a comparison shows, whichever way it went."""

from typing import NamedTuple

from laplace_lora.evaluation.bootstrap import Interval
from laplace_lora.evaluation.comparison import FEWEST_TO_JUDGE, Comparison, Scores
from laplace_lora.evaluation.names import method_name

#: A calibration error up to this many times its sampling floor is called as good as this many examples can show.
NEAR_FLOOR = 1.5


class Verdict(NamedTuple):
    """A verdict in two parts.

    Attributes:
        headline: What happened, without a full stop.
        details: The numbers that say so, in sentences, the first of which begins in lower case.
    """

    headline: str
    details: str


def verdict(comparison: Comparison) -> str:
    """Write the verdict on the comparison's subject, from the numbers alone.

    The log loss decides: it is the proper score that users pay for. Where it is infinite, the Brier score does. A
    method is called better or worse only where the 95% paired bootstrap interval of the difference excludes zero,
    and not at all on fewer than 30 examples.

    Args:
        comparison: The methods.

    Returns:
        One sentence, or a few, without markup.
    """
    return ": ".join(verdict_parts(comparison))


def verdict_parts(comparison: Comparison) -> Verdict:
    """Write the verdict as a headline and its numbers; see :func:`verdict`.

    Args:
        comparison: The methods.

    Returns:
        Both parts, without markup.
    """
    name, scores = method_name(comparison.subject), comparison.methods[comparison.subject]
    if comparison.subject == comparison.reference:
        return _alone(comparison, name, scores)
    before = comparison.methods[comparison.reference]
    details = [
        f"{_losses(comparison, before, scores)}, the calibration error from {before.ece:.3f} to {scores.ece:.3f} "
        f"{_floor(comparison, scores)}, and accuracy {_accuracy(comparison, before, scores)}."
    ]
    if comparison.n < FEWEST_TO_JUDGE:
        return Verdict(f"{comparison.n} test examples are too few to judge {name}", details[0])
    if _outcome(comparison.difference, before, scores) == "worse":
        remedy = ", or tune the prior on held-out data" if comparison.subject == "laplace" else ""
        details.append(f"Keep {method_name(comparison.reference)}{remedy}.")
    return Verdict(_headline(comparison, name, scores), " ".join(details + _against_rivals(comparison, name, scores)))


def _alone(comparison: Comparison, name: str, scores: Scores) -> Verdict:
    """Say how one method does by itself."""
    if comparison.n < FEWEST_TO_JUDGE:
        headline = f"{comparison.n} test examples are too few to judge {name}"
    elif _near_floor(scores):
        headline = f"{name} is calibrated, as far as {comparison.n} examples can show"
    else:
        headline = f"{name} is {_tendency(scores)}"
    loss = f"the log loss is {scores.nll:.3f}"
    if scores.impossible:
        loss = f"{_impossible(comparison, comparison.subject)}, an infinite log loss"
    return Verdict(
        headline,
        f"{loss}, the calibration error {scores.ece:.3f} {_floor(comparison, scores)}, "
        f"and the accuracy {100 * scores.accuracy:.1f} %.",
    )


def _headline(comparison: Comparison, name: str, after: Scores) -> str:
    """Say what the subject did to the reference's predictions."""
    before = comparison.methods[comparison.reference]
    outcome = _outcome(comparison.difference, before, after)
    if outcome == "worse":
        return f"{name} made the predictions worse here"
    if not outcome:
        return f"{name} made no measurable difference here"
    if _near_floor(after):
        if _near_floor(before):
            return f"{name} improved a model that was calibrated already"
        return f"{name} turned an {_tendency(before)} model into a calibrated one"
    if after.ece < before.ece:
        return f"{name} made the probabilities better, though not yet calibrated"
    measure = "Brier score" if comparison.difference["nll"].low is None else "log loss"
    return f"{name} improved the {measure} but not the calibration"


def _outcome(intervals: dict[str, Interval], before: Scores, after: Scores) -> str:
    """Decide between two methods: ``better``, ``worse``, or empty where no difference could be measured."""
    deciding = intervals["nll"] if intervals["nll"].low is not None else intervals["brier"]
    if deciding.above_zero or (after.impossible and not before.impossible):
        return "worse"
    return "better" if deciding.below_zero else ""


def _against_rivals(comparison: Comparison, name: str, after: Scores) -> list[str]:
    """Say how the subject stands against every other method but the reference."""
    sentences = []
    for rival, intervals in comparison.rivals.items():
        scores = comparison.methods[rival]
        outcome = {
            "worse": f"{name} is worse than",
            "better": f"{name} is better than",
            "": f"There is no measurable difference between {name} and",
        }[_outcome(intervals, scores, after)]
        loss = "infinite" if scores.impossible else f"{scores.nll:.3f}"
        sentences.append(f"{outcome} {method_name(rival)} (log loss {loss}, calibration error {scores.ece:.3f}).")
    return sentences


def _losses(comparison: Comparison, before: Scores, after: Scores) -> str:
    """Say what became of the log loss, or why it cannot decide."""
    pair = ((comparison.reference, before), (comparison.subject, after))
    infinite = [_impossible(comparison, method) for method, scores in pair if scores.impossible]
    if not infinite:
        return f"the log loss went from {before.nll:.3f} to {after.nll:.3f}"
    return (
        f"{' and '.join(infinite)}, an infinite log loss; the Brier score went from {before.brier:.3f} to "
        f"{after.brier:.3f}"
    )


def _impossible(comparison: Comparison, method: str) -> str:
    """Say why a method's log loss is infinite."""
    count = comparison.methods[method].impossible
    return f"{method_name(method)} gave {count} of {comparison.n} labels probability zero"


def _floor(comparison: Comparison, scores: Scores) -> str:
    """Write what a calibration error is to be held against."""
    return f"(a perfectly calibrated model would show {scores.ece_floor:.3f} on {comparison.n} examples)"


def _near_floor(scores: Scores) -> bool:
    """Whether the calibration error is as good as the number of examples can show."""
    return scores.ece <= NEAR_FLOOR * scores.ece_floor


def _tendency(scores: Scores) -> str:
    """Name what is wrong with a method's confidence."""
    return "over-confident" if scores.confidence > scores.accuracy else "under-confident"


def _accuracy(comparison: Comparison, before: Scores, after: Scores) -> str:
    """Say what became of the accuracy."""
    if abs(after.accuracy - before.accuracy) < 0.0005:
        return f"stayed at {100 * after.accuracy:.1f} %"
    measurable = " (a measurable loss)" if comparison.difference["accuracy"].below_zero else ""
    return f"went from {100 * before.accuracy:.1f} % to {100 * after.accuracy:.1f} %{measurable}"
