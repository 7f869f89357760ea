"""The grid ``laplace-lora bench --preset small``, and its results as committed JSON.

What is there is not done again: a run that was interrupted goes on.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import RESULTS, run_verb, write_results

from laplace_lora.demo.encoder import encoder_folder

WORK = RESULTS.parents[1] / "build" / "bench"
#: What all lines share is written once.
SHARED = ("base", "training", "protocol", "versions")
#: Methods that are asked at every checkpoint, and on which tasks.
ALONG = "map,laplace,laplace_evidence"
ALONG_TASKS = "sst2"
#: Seconds that no job took: what is longer is a break between two sittings. The second bound counts short ones as work.
PAUSES = 1200.0, 1800.0


def main() -> None:
    """Run both grids, and write their lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with copies of the tasks")
    parser.add_argument("--work-dir", type=Path, default=WORK, help="(default: build/bench)")
    parser.add_argument("--tasks", help="some of the preset's tasks: a,b,c (default: all)")
    parser.add_argument("--no-along", action="store_true", help="leave out what is asked at every checkpoint")
    options = parser.parse_args()
    work = options.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "MiniLM").exists():
        (work / "MiniLM").symlink_to(encoder_folder())
    shared = ["bench", "--base", "MiniLM", "--preset", "small", "--data-dir", str(options.data_dir.resolve())]
    shared += ["--cache", "cache"]
    run_verb([*shared, "--out", "small", *(["--tasks", options.tasks] if options.tasks else [])], work)
    found = {"small": results(work / "small")}
    if not options.no_along:
        along = ["--tasks", ALONG_TASKS, "--methods", ALONG, "--checkpoints", "all", "--ood", "none"]
        run_verb([*shared, "--out", "along", *along], work)
        found["along"] = results(work / "along")
    found["hours"], found["hours_with_short_breaks"] = (hours(work / "cache", pause) for pause in PAUSES)
    write_results("bench_small", found, show=False)


def results(folder: Path) -> dict[str, Any]:
    """Read lines; what is the same in all of them stands once."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["training"].pop("seed")
    first = {name: lines[0][name] for name in SHARED}
    assert all(line[name] == value for line in lines for name, value in first.items())
    settings: dict[str, Any] = {}
    for line in lines:
        of_line = line.pop("settings")
        assert settings.setdefault(line["method"], of_line) == of_line
    kept = [{k: v for k, v in line.items() if k not in SHARED} for line in lines]
    return {"shared": first, "settings": settings, "lines": kept}


def hours(cache: Path, pause: float) -> float:
    """Return how long the grids were worked on: from the first to the last that was kept, less the pauses.

    Two processes may share a cache, and a grid may be measured at several sittings; what was made tells when.

    Args:
        cache: Of the grids.
        pause: What is longer is none of it, in seconds.

    Returns:
        Hours on the clock.
    """
    times = sorted(entry.stat().st_mtime for entry in cache.rglob("entry.json"))
    return sum(later - earlier for earlier, later in pairwise(times) if later - earlier < pause) / 3600.0


if __name__ == "__main__":
    main()
