"""tables.md, tables.tex and report.html of a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laplace_lora.bench.grids import latex, markdown
from laplace_lora.bench.lines import at_the_end
from laplace_lora.bench.notes import notes
from laplace_lora.bench.page import render
from laplace_lora.bench.tables import Line, cost_grid, metric_grids, outside_grids, shifted_grids
from laplace_lora.commands.output import whole_files

#: What ``bench`` writes beside results.jsonl.
FILES = ("tables.md", "tables.tex", "report.html")


def write_report(folder: Path, lines: Sequence[Line], results: Path, about: Mapping[str, Any]) -> None:
    """Write all three, whole or not at all.

    Args:
        folder: Where to.
        lines: Of results.jsonl.
        results: Folder of the cache's results.
        about: Names and values that close the page.
    """
    grids = metric_grids(lines)
    grids += [*shifted_grids(lines), *outside_grids(lines), cost_grid(lines)]
    known = notes(at_the_end(lines))
    packages = "% Needs the packages booktabs and graphicx."
    texts = {
        "tables.md": "\n".join([" ".join(known), "", *(f"## {grid.title}\n\n{markdown(grid)}\n" for grid in grids)]),
        "tables.tex": "\n".join([packages, *(f"% {note}" for note in known), ""])
        + "\n\n".join(latex(grid) for grid in grids)
        + "\n",
        "report.html": render(lines, results, about),
    }
    with whole_files(folder) as staged:
        for name, text in texts.items():
            (staged / name).write_text(text, encoding="utf-8")
