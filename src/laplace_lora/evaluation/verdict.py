"""Say in one plain sentence what a comparison shows, whichever way it went."""

from laplace_lora.evaluation.comparison import Comparison

#: A calibration error up to this many times its sampling floor is called as good as this many examples can show.
NEAR_FLOOR = 1.5


def verdict(comparison: Comparison) -> str:
    """Write the verdict, from the numbers alone.

    The log loss decides: it is the proper score that users pay for. It is called better or worse only where the 95%
    paired bootstrap interval of the difference excludes zero.

    Args:
        comparison: MAP (``before``) against Laplace (``after``).

    Returns:
        One or two sentences without markup.
    """
    before, after, nll = comparison.before, comparison.after, comparison.difference["nll"]
    losses = f"the log loss went from {before.nll:.3f} to {after.nll:.3f}"
    gaps = (
        f"the calibration error from {before.ece:.3f} to {after.ece:.3f} "
        f"(a perfectly calibrated model would show {after.ece_floor:.3f} on {comparison.n} examples)"
    )
    numbers = f"{losses}, {gaps}, and accuracy {_accuracy(comparison)}."
    if nll.above_zero:
        remedy = "Keep the plain model, or tune the prior on held-out data."
        return f"Laplace made the predictions worse here: {numbers} {remedy}"
    if not nll.below_zero:
        return f"Laplace made no clear difference here: {numbers}"
    if after.ece <= NEAR_FLOOR * after.ece_floor:
        return f"Laplace turned {_manner(comparison)} model into a calibrated one: {numbers}"
    if after.ece < before.ece:
        return f"Laplace made the probabilities better, though not yet calibrated: {numbers}"
    return f"Laplace improved the log loss but not the calibration: {numbers}"


def _manner(comparison: Comparison) -> str:
    """Name what was wrong with the first method's confidence, with its article."""
    before = comparison.before
    if before.ece <= NEAR_FLOOR * before.ece_floor:
        return "a"
    return "an over-confident" if before.confidence > before.accuracy else "an under-confident"


def _accuracy(comparison: Comparison) -> str:
    """Say what became of the accuracy."""
    before, after = comparison.before.accuracy, comparison.after.accuracy
    if abs(after - before) < 0.0005:
        return f"stayed at {100 * after:.1f} %"
    return f"went from {100 * before:.1f} % to {100 * after:.1f} %"
