"""Peak resident memory of fit and predict beside a LoRA training step, each in a fresh process.

A figure is the process's high-water mark less its resident size after loading; malloc returns freed blocks
early (mmap and trim thresholds of 65536 bytes), so that the mark says what was in use. Median of three.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from common import MODELS, random_batch, write_results

STEPS = ("training_step", "fit", "fit_one_pass", "predict")


def resident_bytes() -> int:
    """Return the resident size now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this benchmark reads /proc/self/status; run it on Linux")


def run_step(name: str, classes: int, step: str) -> None:
    """Do one step in this process and print its peak in bytes, and the stored posterior's size."""
    from laplace_lora import LaplaceConfig, LaplaceLoRA

    model = MODELS[name](classes)
    batch = random_batch(model, classes)
    stored, rows = 0, 0
    if step == "predict":
        la = LaplaceLoRA(model, LaplaceConfig(progress=False, train_check_bytes=0))
        la.fit([random_batch(model, classes, size=1, length=8, seed=1)])
        stored = la.posterior.nbytes
        rows = 4 * (classes - 1) * 8 * sum(shape.size for shape in la._covered.shapes)
    reset_high_water_mark()
    before = resident_bytes()
    if step == "training_step":
        model(**batch).loss.backward()  # in eval mode: dropout 0, as in everything it is compared with
    elif step == "predict":
        la.predict(batch)
    else:
        fisher = "exact" if step == "fit" else "rademacher"
        la = LaplaceLoRA(model, LaplaceConfig(progress=False, fisher=fisher, train_check_bytes=0)).fit([batch])
        stored = la.posterior.nbytes
    print(high_water_mark() - before, stored, rows)


def high_water_mark() -> int:
    """Return the peak resident size since the last reset, or since the start where it cannot be reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_high_water_mark() -> None:
    """Begin a new peak."""
    # 5 resets the peak (proc(5)); without it, loading a checkpoint could hide what a step needs.
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Run every step three times in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "CLASSES", "STEP"), help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), help="(default: all)")
    parser.add_argument("--classes", nargs="+", type=int, default=[2, 4], help="numbers of classes (default: 2 4)")
    options = parser.parse_args()
    if options.one:
        run_step(options.one[0], int(options.one[1]), options.one[2])
        return
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    results = []
    for name in options.models:
        for classes in options.classes:
            row: dict[str, object] = {"model": name, "classes": classes, "batch": [8, 96]}
            for step in STEPS:
                command = [sys.executable, __file__, "--one", name, str(classes), step]
                outputs = [
                    subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()
                    for _ in range(3)
                ]
                row[step] = {
                    "peak_bytes": statistics.median(int(o[-3]) for o in outputs),
                    "stored_posterior_bytes": int(outputs[0][-2]),
                    "weighted_jacobian_bytes": int(outputs[0][-1]),
                }
            results.append(row)
    write_results("memory", results)


if __name__ == "__main__":
    main()
