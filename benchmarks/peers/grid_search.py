"""laplace-torch's grid search for the prior precision beside this library's cached spectrum, on the same model.

Both fit the same weights on the same batches and ask for the NLL of the same eight texts at the same precisions, one
after the other, with the same number of threads; see compare.py for the model and for the environment of the peers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from case import BATCH_SIZE, TRAIN_BATCHES, read_case, read_model, write_case
from common import median_seconds, write_results

from laplace_lora import LaplaceConfig, LaplaceLoRA
from laplace_lora.prior import choose_jointly, score

PRECISIONS = (0.1, 10.0)


def theirs(python: Path, folder: Path, classes: int, values: int) -> dict[str, Any]:
    """Run laplace-torch's search in the environment of the peers."""
    command = [str(python), str(Path(__file__).parent / "laplace_torch_grid.py"), "--folder", str(folder)]
    command += ["--classes", str(classes), "--values", str(values), "--threads", str(torch.get_num_threads())]
    command += ["--precisions", *map(str, PRECISIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"laplace_torch_grid.py failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(folder: Path, classes: int, values: int, repeats: int) -> dict[str, Any]:
    """Collect the spectrum in one pass, ask for every value, and choose precision and temperature together."""
    case = read_case(folder, classes)
    model = read_model(folder, classes)
    la = LaplaceLoRA(model, LaplaceConfig(progress=False)).fit(case.train)
    state = la._state
    start = time.perf_counter()
    held_out = state.held_out(model, [case.test])
    collecting = time.perf_counter() - start
    grid = torch.logspace(*(float(torch.tensor(value).log10()) for value in PRECISIONS), values, dtype=torch.float64)

    @torch.no_grad()
    def search() -> list[float]:
        return [float(score([held_out], value.reshape(1), 1.0)) for value in grid]

    return {
        "seconds_of_the_pass": collecting,
        "seconds": median_seconds(search, repeats),
        "nll": search(),
        "seconds_of_precision_and_temperature": median_seconds(
            lambda: choose_jointly([held_out], state.precision), repeats
        ),
    }


def main() -> None:
    """Measure both, and write what a value costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 4], help="numbers of classes (default: 2 4)")
    parser.add_argument("--length", type=int, default=32, help="tokens of a text (default: 32)")
    parser.add_argument("--values", type=int, default=5, help="precisions from 0.1 to 10 (default: 5)")
    parser.add_argument("--repeats", type=int, default=11, help="repeats of what takes no pass (default: 11)")
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"), help="of the peers' environment")
    options = parser.parse_args()
    if not options.python.exists():
        parser.error(f"{options.python} does not exist; make the peers' environment as compare.py says.")
    results = []
    for classes in options.classes:
        with tempfile.TemporaryDirectory() as name:
            write_case(Path(name), classes, options.length)
            other = theirs(options.python, Path(name), classes, options.values)
            own = ours(Path(name), classes, options.values, options.repeats)
        results.append(
            {
                "model": "llama_30m",
                "classes": classes,
                "tokens": options.length,
                "training_examples": TRAIN_BATCHES * BATCH_SIZE,
                "validation_examples": BATCH_SIZE,
                "precisions": list(PRECISIONS),
                "values": options.values,
                "laplace_torch": other,
                "ours": own,
                "a_value_of_theirs_over_one_of_ours": other["seconds"] / own["seconds"],
                "their_search_over_pass_and_choice": other["seconds"]
                / (own["seconds_of_the_pass"] + own["seconds_of_precision_and_temperature"]),
            }
        )
        print(json.dumps(results[-1], indent=2), file=sys.stderr, flush=True)
    write_results("grid_search", results, show=False)


if __name__ == "__main__":
    main()
