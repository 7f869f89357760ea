"""This library, laplace-torch and bayesian-lora side by side: time, memory, stored bytes, errors against a dense GGN.

Every figure comes from a process of its own, all with the same weights, batches, prior and number of threads; times
are in units of a forward pass of the same batch (no gradients, scaled dot-product attention) in the same process.

laplace-torch pins an old dependency, so the two others get an environment of their own. Run from the project's:

    python -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmarks/peers/requirements.txt
    .venv-peers/bin/pip uninstall -y torchvision
    python benchmarks/peers/compare.py

laplace-torch requires torchvision and does not import it; transformers does, and fails where torchvision's CUDA build
meets a CPU build of torch. Linux only (reads /proc).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from case import BATCH_SIZE, LENGTH, PRIOR_PRECISION, TRAIN_BATCHES, Parameters, write_case
from common import RESULTS, machine
from report import derived, errors, print_tables
from safetensors.torch import load_file

_HERE = Path(__file__).parent
_PROJECT = "ours"
_MEMORY_PROCESSES = 3
WORKAROUNDS = {
    "laplace_torch": [
        "torchvision is uninstalled: nothing here imports it but transformers, which fails on a CUDA build of it "
        "beside a CPU build of torch",
        "the logits' covariance is not public for classification; it is read from _glm_predictive_distribution, and "
        "the timed call is the public one (probabilities by probit)",
    ],
    "bayesian_lora_": [
        "head frozen: jacobian_mean asserts that all trained parameters are LoRA's",
        "jacobian_mean is imported from bayesian_lora.main and needs an output_callback",
        "variance() needs the small factors' Cholesky decomposition, which its example makes and its README leaves out",
        "random draws as in its example; the README's own lines do not broadcast",
        "the factors are scaled by 1 / batch size (mean loss)",
    ],
}


@dataclass(frozen=True)
class Run:
    """One row of the tables."""

    tool: str
    variant: str
    parameters: Parameters
    attention: str = "sdpa"
    steps: tuple[str, ...] = ("covariance", "time", "memory_fit", "memory_predict")
    fit_only: bool = False


_COST = ("time", "memory_fit", "memory_predict")
_FIT = ("covariance", "time", "memory_fit")
RUNS = (
    Run(_PROJECT, "kron", "all"),
    Run(_PROJECT, "kron_one_pass", "all"),
    Run(_PROJECT, "exact", "all"),
    Run("laplace_torch", "default", "all"),
    Run("laplace_torch", "default", "all", attention="eager", steps=_COST),
    Run("laplace_torch", "one_sample", "all", steps=_FIT, fit_only=True),
    Run("laplace_torch", "asdl", "all", steps=("covariance",)),  # raises from the second batch on
    Run(_PROJECT, "kron", "lora"),
    Run(_PROJECT, "kron_one_pass", "lora"),
    Run("bayesian_lora_", "default", "lora"),
)


def worker(options: argparse.Namespace, folder: Path, tool: str, classes: int, *arguments: str) -> dict[str, Any]:
    """Run a worker; return what it printed last."""
    python = sys.executable if tool in (_PROJECT, "oracle") else str(options.python)
    command = [python, str(_HERE / f"{tool}.py"), *arguments]
    command += ["--folder", str(folder), "--classes", str(classes), "--threads", str(options.threads)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "MKL_NUM_THREADS": str(options.threads),
        # Freed blocks go back early, so that the high-water mark says what was in use (see benchmarks/memory.py).
        **({"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"} if "memory" in arguments[0] else {}),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


def measure(options: argparse.Namespace, folder: Path, run: Run, classes: int) -> dict[str, Any]:
    """Take one row's steps, each in a process of its own."""
    row: dict[str, Any] = {
        "tool": run.tool.rstrip("_"),
        "variant": run.variant,
        "parameters": run.parameters,
        "attention": run.attention,
    }
    settings = ["--variant", run.variant, "--parameters", run.parameters, "--attention", run.attention]
    for step in run.steps:
        say(f"K={classes} {run.tool} {run.variant} {run.parameters} {run.attention}: {step}")
        extra: list[str] = []
        if step == "time":
            extra = ["--repeats", str(options.repeats), "--slow-repeats", str(options.slow_repeats)]
            extra += ["--fit-only"] if run.fit_only else []
        elif step == "covariance":
            extra = ["--out", str(folder / "covariance.safetensors")]
        count = options.memory_processes if "memory" in step else 1
        outputs = [worker(options, folder, run.tool, classes, step, *settings, *extra) for _ in range(count)]
        if any("raised" in output for output in outputs):
            row[step] = outputs[0]
        elif "memory" in step:
            row[step] = {"peak_bytes": statistics.median(output["peak_bytes"] for output in outputs)}
        else:
            row[step] = outputs[0]
            if step == "covariance":
                covariance = load_file(folder / "covariance.safetensors")["covariance"]
                row[step].update(errors(covariance, load_file(_oracle(folder, classes)), run.parameters))
    return row


def results_for(options: argparse.Namespace, folder: Path, classes: int) -> dict[str, Any]:
    """Measure all rows at one number of classes."""
    write_case(folder, classes, options.length)
    say(f"K={classes} oracle")
    worker(options, folder, "oracle", classes, "--out", str(_oracle(folder, classes)))
    rows = [measure(options, folder, run, classes) for run in RUNS if not options.only or run.tool in options.only]
    return {"classes": classes, "rows": rows, "ours_against": derived(rows)}


def probes(options: argparse.Namespace, folder: Path, classes: int) -> dict[str, dict[str, Any]]:
    """Ask the peers for their versions, and for what documented calls raise here."""
    return {tool: worker(options, folder, tool, classes, "probe") for tool in WORKAROUNDS}


def say(line: str) -> None:
    """Tell the reader on stderr what goes on."""
    print(line, file=sys.stderr, flush=True)


def _oracle(folder: Path, classes: int) -> Path:
    return folder / f"oracle{classes}.safetensors"


def main() -> None:
    """Measure, print the tables, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=11, help="repeats of quick calls, at least 2 (default: 11)")
    parser.add_argument("--slow-repeats", type=int, default=3, help="of calls beyond 20 forward passes (default: 3)")
    parser.add_argument(
        "--memory-processes", type=int, default=_MEMORY_PROCESSES, help="median of so many (default: 3)"
    )
    parser.add_argument("--classes", nargs="+", type=int, default=[4], help="numbers of classes (default: 4)")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a text; fewer for a trial (default: 96)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every process")
    parser.add_argument("--only", nargs="+", choices=[_PROJECT, *WORKAROUNDS], help="leave the other tools out")
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"), help="of the peers' environment")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    options = parser.parse_args()
    if not options.python.exists():
        parser.error(f"{options.python} does not exist; make the peers' environment as said above, or give --python.")
    about = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        by_classes = [results_for(options, folder, classes) for classes in options.classes]
        probed = probes(options, folder, options.classes[0])
    about["threads"] = options.threads
    about["peer_versions"] = {name: version for tool in probed.values() for name, version in tool["versions"].items()}
    about["versions"].update({name: about["peer_versions"][name] for name in ("laplace-torch", "bayesian-lora")})
    results = {
        "case": {
            "model": "llama_30m",
            "batch": [BATCH_SIZE, options.length],
            "training_examples": TRAIN_BATCHES * BATCH_SIZE,
            "prior_precision": PRIOR_PRECISION,
        },
        "by_classes": by_classes,
        "raised": {tool.rstrip("_"): probe["raised"] for tool, probe in probed.items()},
        "workarounds": {tool.rstrip("_"): lines for tool, lines in WORKAROUNDS.items()},
    }
    document = {"command": _command(sys.argv[1:]), "machine": about}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({**document, "results": results}, indent=2) + "\n")
    print_tables(results)


def _command(arguments: list[str]) -> str:
    """Return the command without where this machine keeps the peers' environment and the results."""
    kept = [argument for argument in arguments if not argument.startswith(("--python=", "--out="))]
    for name in ("--python", "--out"):
        if name in kept:
            del kept[kept.index(name) : kept.index(name) + 2]
    return " ".join(["python", "benchmarks/peers/compare.py", *kept])


if __name__ == "__main__":
    main()
