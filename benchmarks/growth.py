"""How time, memory and stored bytes grow with N, T, K, r, d and L, one at a time, beside the model's own passes.

Around one small base point, a random Llama with LoRA on q and v (head width 32, intermediate width 2d), each of these
is varied by itself: N training examples, T tokens per example, K classes, LoRA rank r, hidden width d, L layers.
`fit` is of the whole data set, `predict` of a batch of 8. Seconds are medians of interleaved repeats. Memory is the
peak of one batch (of the whole data set where N varies) above what was resident before, as in memory.py. What the
slopes are is said in growth_picture.py, which draws the picture.

Every measurement has a process of its own, forked from this one: the imports take longer than most measurements.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, interleaved, machine, random_batch, with_lora
from forked import SkippedError, in_own_process, peak_bytes, return_freed_blocks
from growth_picture import slopes, table
from passes import reference_passes, training_step
from torch import Tensor, manual_seed, nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from laplace_lora import LaplaceConfig, LaplaceLoRA

BASE = {"N": 64, "T": 64, "K": 4, "r": 8, "d": 128, "L": 4}
# A rank below the default: factors wider than 64 are sketched, those of the base point included.
BATCH, FACTOR_RANK = 8, 32
SWEEPS = {
    "N": (8, 80, 256, 800),
    "T": (4, 40, 120, 400),
    "K": (2, 6, 20, 64),
    "r": (1, 10, 30, 100),
    "d": (32, 128, 320, 1024),
    "L": (1, 3, 10, 32),
}
#: The default posterior is varied in everything; the others where they grow differently. Whole factors at d = 1024
#: are left out: their eigendecompositions would outlast the rest.
SERIES = {"kron": SWEEPS, "kron_full": {"d": SWEEPS["d"][:-1]}, "exact": {"N": SWEEPS["N"]}}
STEPS = ("passes", "training_step", "fit", "fit_one_pass", "predict")
#: No call is begun that the passes foretell to last longer (seconds).
CALL_LIMIT = 75.0
#: Calls are repeated for about so long; a round that lasts longer than the second is run once, without a warm-up.
REPEAT_SECONDS, ONCE_ABOVE = 2.0, 10.0


@dataclasses.dataclass(frozen=True)
class Point:
    """What is measured: one parameter away from the base, one kind of posterior."""

    series: str
    parameter: str
    value: int

    def size(self, name: str) -> int:
        """Return one of the six parameters."""
        return self.value if name == self.parameter else BASE[name]

    def model(self) -> nn.Module:
        """Build the Llama, the same at every call."""
        manual_seed(0)
        width = self.size("d")
        config = LlamaConfig(
            vocab_size=1000,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=self.size("L"),
            num_attention_heads=max(1, width // 32),
            max_position_embeddings=512,
            num_labels=self.size("K"),
            pad_token_id=0,
        )
        return with_lora(LlamaForSequenceClassification(config), ["q_proj", "v_proj"], self.size("r"))

    def batches(self, model: nn.Module, examples: int) -> list[dict[str, Tensor]]:
        """Draw the data set; the number of examples is a multiple of the batch's."""
        classes, length = self.size("K"), self.size("T")
        return [random_batch(model, classes, BATCH, length, seed) for seed in range(math.ceil(examples / BATCH))]

    def config(self, fisher: str = "exact") -> LaplaceConfig:
        """Return the settings: the default posterior, or the one that the series names."""
        if self.series == "exact":
            return LaplaceConfig(progress=False, structure="exact", fisher=fisher, train_check_bytes=0)
        # A rank as large as the widest factor keeps them all whole.
        rank = FACTOR_RANK if self.series == "kron" else max(self.size("d"), self.size("K"), self.size("r"))
        return LaplaceConfig(progress=False, fisher=fisher, factor_rank=rank, train_check_bytes=0)

    @property
    def cheapest_fisher(self) -> str:
        """What makes a posterior to predict with: of the same shape whatever its rows, save for exact."""
        return "exact" if self.series == "exact" else "rademacher"

    def calls(self, model: nn.Module, loader: list[dict[str, Tensor]]) -> dict[str, Callable[[], Any]]:
        """Say what is timed and whose peak is taken, but for predict, which needs a fit."""
        calls = {
            "passes": reference_passes(model, loader[0], self.size("K")),
            "training_step": training_step(model, loader[0]),
            "fit": lambda: LaplaceLoRA(model, self.config()).fit(loader),
            "fit_one_pass": lambda: LaplaceLoRA(model, self.config("rademacher")).fit(loader),
        }
        if self.series == "exact":
            del calls["fit_one_pass"]  # refused with K > 2
        return calls


def warm_up() -> None:
    """Load code and start threads: seconds and MiB that have nothing to do with the sizes measured."""
    smallest = Point("kron", "d", 32)
    model = smallest.model()
    loader = smallest.batches(model, BATCH)
    LaplaceLoRA(model, smallest.config()).fit(loader).predict(loader[0])
    training_step(model, loader[0])()


def timings(point: Point, repeat_seconds: float) -> dict[str, Any]:
    """Time all calls in turn; leave out those that would last too long."""
    warm_up()
    model = point.model()
    loader = point.batches(model, point.size("N"))
    calls = point.calls(model, loader)
    forward_and_backward, passes = timed(calls["training_step"]), timed(calls["passes"])
    expected = {
        "passes": passes,
        "training_step": forward_and_backward,
        "fit": passes * len(loader),
        "fit_one_pass": forward_and_backward * len(loader),
        "predict": passes,
    }
    skipped = {name: f"passes of {s:.0f} s" for name, s in expected.items() if s > CALL_LIMIT}
    fitted = LaplaceLoRA(model, point.config(point.cheapest_fisher)).fit(loader)
    calls["predict"] = lambda: fitted.predict(loader[0])
    found = {"skipped": skipped, "stored_bytes": fitted.posterior.nbytes}
    if "predict" not in skipped:
        found["first_predict_seconds"] = timed(calls["predict"])
    calls = {name: call for name, call in calls.items() if name not in skipped}
    round_seconds = sum(expected[name] for name in calls)
    if round_seconds > ONCE_ABOVE:
        taken = {name: [timed(call)] for name, call in calls.items()}
    else:
        taken = interleaved(calls, min(15, max(3, int(repeat_seconds / round_seconds))))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for fit, of_batch in (("fit", "passes"), ("fit_one_pass", "training_step")):
        medians[f"passes_of_{fit}"] = len(loader) * medians.get(of_batch, expected[of_batch])
    return {**found, "repeats": max(map(len, taken.values())), "seconds": medians}


def peak(point: Point, step: str) -> dict[str, Any]:
    """Take the high-water mark of one call above what was resident before it."""
    return_freed_blocks()
    warm_up()
    model = point.model()
    loader = point.batches(model, point.size("N") if point.parameter == "N" else BATCH)
    calls = point.calls(model, loader)
    if step == "predict":
        fitted = LaplaceLoRA(model, point.config(point.cheapest_fisher)).fit(loader)
        calls[step] = lambda: fitted.predict(loader[0])
    return {"bytes": peak_bytes(calls[step])}


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(point: Point, repeat_seconds: float) -> dict[str, Any]:
    """Measure one point; what could not be measured is named with its reason."""
    row = {**dataclasses.asdict(point), "config": point.config().to_dict(), "seconds": {}, "peak_bytes": {}}
    try:
        row |= in_own_process(timings, point, repeat_seconds)
        for step in [name for name in STEPS if name in row["seconds"] or name == "fit"]:
            row["peak_bytes"][step] = in_own_process(peak, point, step)["bytes"]
    except SkippedError as error:
        row["skipped"] = {**row.get("skipped", {}), "rest": str(error)}
    return row


def main() -> None:
    """Measure every point, rewriting the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "growth.json", help="(default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep the points that are already in the file")
    parser.add_argument("--quick", action="store_true", help="few and small points, to see that it runs")
    options = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers, once for every model built
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    document: dict[str, Any] = {"command": command, "machine": machine()}
    before = json.loads(options.out.read_text())["results"]["points"] if options.resume and options.out.exists() else []
    points: list[dict[str, Any]] = []
    start, unfinished = time.perf_counter(), options.out.with_suffix(".unfinished")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    for series, parameters in SERIES.items():
        for parameter, values in parameters.items():
            for value in values[: 3 if options.quick else None]:
                point = Point(series, parameter, value)
                known = dataclasses.asdict(point) | {"config": point.config().to_dict()}
                kept = next((row for row in before if known.items() <= row.items()), None)
                points.append(kept or measure(point, 1.0 if options.quick else REPEAT_SECONDS))
                print(f"{time.perf_counter() - start:5.0f} s: {series}, {parameter} = {value}", flush=True)
                document["results"] = {"base": BASE, "batch": BATCH, "points": points, "slopes": slopes(points)}
                # Replaced in one step, so that an interruption leaves a whole file to resume.
                unfinished.write_text(json.dumps(document, indent=2) + "\n")
                os.replace(unfinished, options.out)
    print(table(points))


if __name__ == "__main__":
    main()
