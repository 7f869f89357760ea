"""What readers of a benchmark's tables have to know, at the head of the page and of both files of tables."""

from collections.abc import Sequence

from laplace_lora.bench.tables import Line
from laplace_lora.methods.table import METHODS


def notes(lines: Sequence[Line]) -> list[str]:
    """Say what readers of tables have to know.

    Args:
        lines: Of results.jsonl, at the ends of trainings.

    Returns:
        Sentences.
    """
    found = []
    own = list(dict.fromkeys(line["task"] for line in lines if line["own_split"]))
    if own:
        found.append(f"Rows of {', '.join(own)} are no published split: these figures belong beside no published ones.")
    cut = dict.fromkeys(f"{count} of {name}" for line in lines for name, count in line["cut"].items())
    if cut:
        found.append(f"Cut to the most tokens: {', '.join(cut)}.")
    rows = dict.fromkeys(
        f"{line['task']} {line['rows']['train']} and {line['rows']['test']}"
        for line in lines
        if not METHODS[line["method"]].needs_held_out
    )
    if rows:
        found.append(f"Rows of training and test: {'; '.join(rows)}.")
    seeds = ", ".join(dict.fromkeys(str(line["seed"]) for line in lines))
    found += [
        f"Mean ± standard deviation over seeds ({seeds}).",
        "Of accuracy and AUROC more is better, of everything else less.",
        "The best of a column is bold, and with it every method whose difference from it, paired by seed, is at most "
        "one standard error.",
    ]
    return found
