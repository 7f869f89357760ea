"""Time and memory of fit and predict on a single GPU, in units of the model's own passes.

Run it from the repository root: ``python benchmarks/gpu/single.py``. It needs torch, transformers, peft and this
library; nothing is downloaded: the model has the shape of Llama-2-7B and random weights. It ends within its budget (and
some seconds; what does not fit is listed by name), writes JSON after every measurement and prints a table at the end.
Peers are measured where they are installed. ``--tiny`` proves the script on any machine.

A reference ``forward`` gives the answers' logits without gradients, ``passes`` is 1 forward and K-1 backward passes to
the LoRA weights, ``training_step`` 1 forward and 1 backward. Memory is what a call needs above what is resident.
"""

import argparse
import gc
import importlib.util
import itertools
import sys
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
if importlib.util.find_spec("laplace_lora") is None:
    # A bare copy of the repository on a rented machine: the library is taken from its source.
    sys.path.insert(0, str(ROOT / "src"))

from cases import MEASURED, STRUCTURE_NAMES, Bench, fitted, group, integral  # noqa: E402
from meter import Meter  # noqa: E402
from peers import measure_peers  # noqa: E402
from profiling import print_profiles  # noqa: E402
from record import Record  # noqa: E402
from shapes import SHAPES, build_model, require_memory  # noqa: E402

#: Share of the time left that the peers may count on, after the library's own measurements.
PEERS_SHARE = 0.15


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    best = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--size", choices=list(SHAPES), default="7b", help="shape of the model (default: 7b)")
    parser.add_argument("--tiny", action="store_const", dest="size", const="tiny", help="short for --size tiny")
    parser.add_argument("--device", default=best, help="(default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="of the base (default: the size's)")
    parser.add_argument("--classes", nargs="+", type=int, default=[4, 2], help="numbers of answers (default: 4 2)")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 4], help="texts per batch (default: 8 4)")
    parser.add_argument("--structures", nargs="+", choices=STRUCTURE_NAMES, default=list(MEASURED))
    parser.add_argument("--factor-rank", type=int, default=64, help="of sketched factors (default: 64)")
    parser.add_argument("--repeats", type=int, default=9, help="most rounds per measurement (default: 9)")
    parser.add_argument("--budget-seconds", type=float, default=450.0, help="(default: 450)")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, before the measurements")
    parser.add_argument("--no-peers", action="store_true", help="leave laplace-torch and bayesian-lora out")
    parser.add_argument("--out", type=Path, help="(default: benchmarks/results/gpu.json, other sizes gpu-SIZE.json)")
    return parser.parse_args()


def main() -> None:
    """Run all measurements."""
    options = parse()
    began = time.monotonic()
    shape, device = SHAPES[options.size], torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; choose --device cpu with --tiny.")
    if options.dtype:
        shape = type(shape)(**{**vars(shape), "dtype": options.dtype})
    require_memory(options.size, shape, max(options.batches), device)
    name = "gpu.json" if options.size == "7b" else f"gpu-{options.size}.json"
    settings = {
        "size": options.size,
        "dtype": shape.dtype,
        "length": shape.length,
        "rank": shape.rank,
        "factor_rank": options.factor_rank,
    }
    record = Record(options.out or ROOT / "benchmarks" / "results" / name, options.budget_seconds, device, settings)
    meter = Meter(device)
    model = build_model(shape, device)
    # What exists now stays, and need not be looked through at every collection of garbage.
    gc.freeze()
    meter.synchronise()
    settings["setup_seconds"] = round(time.monotonic() - began, 1)
    bench = Bench(model, shape, meter, record, options.repeats, options.factor_rank)
    # What PEFT and transformers say about random models is of no interest, and the table is to come last.
    warnings.filterwarnings("ignore")
    if options.profile:
        for classes, structure in itertools.product(options.classes[:1], options.structures):
            print_profiles(bench, classes, max(options.batches), structure)
    groups = len(options.classes) * len(options.structures) * len(options.batches)
    for classes in options.classes:
        for size in options.batches:
            integral(bench, classes, size)
        for structure in options.structures:
            with fitted(bench, classes, structure, max(options.batches)) as la:
                for size in options.batches:
                    kept = 0.0 if options.no_peers else PEERS_SHARE
                    group(bench, la, classes, structure, size, (1.0 - kept) * record.remaining / groups)
                    groups -= 1
            del la
            meter.release()
    if not options.no_peers:
        # Smallest first: what fits nowhere is known soon.
        for classes, size in itertools.product(sorted(options.classes), sorted(options.batches)):
            measure_peers(bench, classes, size)
    record.finish()


if __name__ == "__main__":
    main()
