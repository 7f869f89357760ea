"""OpenBookQA by task name and what lies outside of it, and WinoGrande-S: both of the paper's protocols, verb by verb.

all-MiniLM-L6-v2 scores each choice by itself (preset `small`). On OpenBookQA the prior comes from the evidence on all
training rows; on WinoGrande-S the last fifth of them is held out for the prior and the temperature.
"""

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import Any

from common import RESULTS, run_verb, write_results

from laplace_lora.demo.encoder import encoder_folder

WORK = RESULTS.parents[1] / "build" / "openbookqa"
#: Small shifts, then large ones. Of ARC the hub's test split; the paper reports on its validation split.
OUTSIDE = ("arc_easy:test", "arc_challenge:test", "mmlu_cs", "mmlu_eng", "mmlu_law", "mmlu_health")
#: Task, training rows, rows held out, and what lies outside.
PROTOCOLS: dict[str, tuple[str, str, str | None, tuple[str, ...]]] = {
    "evidence on all rows": ("openbookqa", "openbookqa", None, OUTSIDE),
    "validation on the last fifth": ("winogrande_s", "winogrande_s:train[:80%]", "winogrande_s:train[80%:]", ()),
}


def measure(protocol: str, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """Run the three verbs; what an interrupted run has finished is kept in the work folder."""
    folder = work / f"{protocol.replace(' ', '-')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, target in (("MiniLM", encoder_folder()), ("data", data.resolve())):
        if not (folder / name).exists():
            (folder / name).symlink_to(target)
    task, train, held_out, others = PROTOCOLS[protocol]
    named, held = ["--data-dir", "data"], [] if held_out is None else ["--validation", held_out]
    outside = [part for name in others for part in ("--ood", name)]
    adapter = ["--adapter", "adapter"]
    verbs = {
        "train": ["--preset", "small", "--model", "MiniLM", "--data", train, *named, "--seed", str(seed)],
        "fit": [*adapter, "--data", train, *held, *named],
        "evaluate": [*adapter, "--posterior", "posterior", "--data", task, *held, *outside, *named],
    }
    done = {"train": "adapter", "fit": "posterior", "evaluate": "report"}
    seconds: dict[str, float | None] = {}
    messages, commands = [], []
    for verb, options in verbs.items():
        arguments = [*options, "--out", done[verb]]
        commands.append(shlex.join(["laplace-lora", verb, *arguments]))
        log = folder / f"{verb}.json"
        if not (folder / done[verb]).exists() or not log.exists():
            start = time.perf_counter()
            said = run_verb([verb, *arguments], folder)
            log.write_text(json.dumps({"seconds": time.perf_counter() - start, "said": said}), encoding="utf-8")
        kept = json.loads(log.read_text(encoding="utf-8"))
        seconds[verb] = kept["seconds"]
        messages += kept["said"]
    metrics = json.loads((folder / "report" / "metrics.json").read_text(encoding="utf-8"))
    wanted = ("n", "data", "validation", "methods", "differences", "rivals", "ood", "prior_precision", "temperature")
    return {
        "protocol": protocol,
        "seed": seed,
        "commands": commands,
        "seconds": seconds,
        "messages": [message for message in messages if message["event"] in ("fitted", "prior", "warning")],
        **{key: metrics.get(key) for key in wanted},
    }


def main() -> None:
    """Measure both protocols over the seeds; what an earlier run finished is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with openbookqa/, arc_easy/, mmlu_cs/ ...")
    parser.add_argument("--work-dir", type=Path, default=WORK, help="(default: build/openbookqa)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    options = parser.parse_args()
    path = RESULTS / "openbookqa.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    have = {(result["protocol"], result["seed"]) for result in results}
    for seed in options.seeds:
        for protocol in PROTOCOLS:
            if (protocol, seed) not in have:
                results.append(measure(protocol, seed, options.data_dir, options.work_dir))
                write_results("openbookqa", results)


if __name__ == "__main__":
    main()
