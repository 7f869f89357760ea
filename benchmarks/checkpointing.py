"""Peak memory and passes of fit with gradient checkpointing switched on, beside fit without it and a training step.

As in memory.py: each step in a process of its own, the high-water mark less the resident size after loading, median of
three. A 30M-parameter Llama of 8 layers, 4 classes, batches of 8 texts of 192 tokens.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from common import MODELS, random_batch, write_results
from forked import high_water_mark, reset_high_water_mark, resident_bytes

CLASSES, LENGTH = 4, 192
STEPS = ("training_step", "training_step_checkpointed", "fit", "fit_checkpointed")


def run_step(step: str) -> None:
    """Do one step in this process; print its peak in bytes, and its seconds."""
    from laplace_lora import LaplaceConfig, LaplaceLoRA

    model = MODELS["llama_30m"](CLASSES)
    batch = random_batch(model, CLASSES, length=LENGTH)
    if step.endswith("_checkpointed"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    reset_high_water_mark()
    before, start = resident_bytes(), time.perf_counter()
    if step.startswith("training"):
        model.train()  # transformers checkpoints in training mode only; there is no dropout here
        model(**batch).loss.backward()
    else:
        LaplaceLoRA(model, LaplaceConfig(progress=False, train_check_bytes=0)).fit([batch])
    print(high_water_mark() - before, time.perf_counter() - start)


def main() -> None:
    """Run every step three times in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", metavar="STEP", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_step(options.one)
        return
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    results = []
    for step in STEPS:
        command = [sys.executable, __file__, "--one", step]
        runs = [
            subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()[-2:]
            for _ in range(3)
        ]
        results.append(
            {
                "step": step,
                "batch": [8, LENGTH],
                "classes": CLASSES,
                "peak_bytes": statistics.median(int(run[0]) for run in runs),
                "seconds": statistics.median(float(run[1]) for run in runs),
            }
        )
    write_results("checkpointing", results)


if __name__ == "__main__":
    main()
