"""What the workers of all tools share: one step per process, its result as one line of JSON on stdout.

Steps: ``time`` (fit and predict beside a forward pass), ``memory_fit`` and ``memory_predict`` (peak resident bytes),
``covariance`` (of the test batch's logits after fitting the training data), ``probe`` (what documented calls that do
not work here raise).
"""

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from case import Batch, Case, centred, inputs_of, read_case, read_model
from common import paired_ratio
from forked import high_water_mark, reset_high_water_mark, resident_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

# A call that takes as many forward passes in its warm-up gets ``--slow-repeats`` repeats.
_SLOW = 20


@dataclass(frozen=True)
class Tool:
    """One tool on one model: its own calls behind a common face.

    ``predict`` computes the full Gaussian over the logits and the probabilities; ``covariance`` returns (B, K, K).
    """

    fit: Callable[[list[Batch]], Any]
    predict: Callable[[Any, Batch], Any]
    covariance: Callable[[Any, Batch], Tensor]
    stored_bytes: Callable[[Any], int]


Factory = Callable[[nn.Module], Tool]
Probe = Callable[[nn.Module, Case], Any]


def tensor_bytes(tensors: Iterable[Any]) -> int:
    """Return the bytes of all tensors in nested lists and tuples."""
    return sum(t.nbytes if isinstance(t, Tensor) else tensor_bytes(t) for t in tensors)


def raised(error: Exception) -> dict[str, str]:
    """Say what was raised, and by which line, because an assertion often has no message."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    lines = str(error).strip().replace(sys.prefix, "<environment>").splitlines()
    return {
        "class": type(error).__name__,
        "message": lines[0] if lines else "",
        "line": f"{Path(frame.filename).name}, {frame.name}: {frame.line}",
    }


def measure_time(factory: Factory, model: nn.Module, reference: nn.Module, case: Case, options: Any) -> dict[str, Any]:
    """Time the calls in turn, each between two forward passes of the same batch.

    Fit is of all training batches, divided by their number: every tool has work to do once per data set. A slow call
    drops out after fewer rounds. Every other round runs in reverse order.
    """
    tool = factory(model)
    batch, inputs = case.test, inputs_of(case.test)

    def forward() -> None:
        with torch.no_grad():
            reference(**inputs)

    fitted = tool.fit([batch])
    calls: dict[str, Callable[[], Any]] = {"fit": lambda: tool.fit(case.train)}
    batches = {"fit": len(case.train), "predict": 1}
    if not options.fit_only:
        calls["predict"] = lambda: tool.predict(fitted, batch)
    forward()
    warm = {name: _seconds(call) / _seconds(forward) for name, call in calls.items()}
    rounds = {name: options.slow_repeats if ratio > _SLOW else options.repeats for name, ratio in warm.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {"call": [], "forward": []} for name in calls}
    before = _seconds(forward)
    for repeat in range(max(rounds.values())):
        for name in list(calls) if repeat % 2 == 0 else list(reversed(calls)):
            if repeat < rounds[name]:
                taken, after = _seconds(calls[name]) / batches[name], _seconds(forward)
                seconds[name]["call"].append(taken)
                # The mean of both neighbours: a machine that drifts during a long call drifts on both sides of it.
                seconds[name]["forward"].append((before + after) / 2)
                before = after
    return {
        name: {
            "repeats": rounds[name],
            "median_seconds": statistics.median(times["call"]),
            "median_forward_seconds": statistics.median(times["forward"]),
            "forward_passes": paired_ratio(times, "call", "forward"),
        }
        for name, times in seconds.items()
    }


def measure_memory(factory: Factory, model: nn.Module, case: Case, step: str) -> dict[str, int]:
    """Measure one call's peak above what was resident before it.

    The calls run once on a tiny batch first, so that modules which are loaded on first use are not counted.
    """
    tool = factory(model)
    fitted = tool.fit([case.tiny])
    if step == "memory_predict":
        tool.predict(fitted, case.tiny)
        fitted = tool.fit([case.train[0]])
    else:
        del fitted
    reset_high_water_mark()
    before = resident_bytes()
    if step == "memory_predict":
        tool.predict(fitted, case.test)
    else:
        fitted = tool.fit([case.train[0]])
    return {"peak_bytes": high_water_mark() - before}


def measure_covariance(factory: Factory, model: nn.Module, case: Case, out: Path) -> dict[str, int]:
    """Fit the training data, write the covariance of the test batch's centred logits, count the stored bytes."""
    tool = factory(model)
    fitted = tool.fit(case.train)
    save_file({"covariance": centred(tool.covariance(fitted, case.test).detach())}, out)
    return {"stored_posterior_bytes": tool.stored_bytes(fitted)}


def probe(probes: Mapping[str, Probe], model: nn.Module, case: Case) -> dict[str, Any]:
    """Make every call and say what it raised."""
    results: dict[str, Any] = {}
    for name, call in probes.items():
        try:
            call(model, case)
            results[name] = None
        except Exception as error:
            results[name] = raised(error)
    return results


def main(factories: Mapping[str, Factory], probes: Mapping[str, Probe], packages: tuple[str, ...]) -> None:
    """Do one step and print its result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=["time", "memory_fit", "memory_predict", "covariance", "probe"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--variant", choices=list(factories))
    parser.add_argument("--parameters", choices=["all", "lora"], default="all")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--fit-only", action="store_true")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--slow-repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    case = read_case(options.folder, options.classes)
    model = read_model(options.folder, options.classes, options.attention, options.parameters)
    result: dict[str, Any]
    try:
        if options.step == "probe":
            versions = {name: importlib.metadata.version(name).split("+")[0] for name in packages}
            result = {"versions": versions, "raised": probe(probes, model, case)}
        elif options.step == "time":
            # The unit is the same for all: a forward pass with the model's default attention.
            reference = model if options.attention == "sdpa" else read_model(options.folder, options.classes)
            result = measure_time(factories[options.variant], model, reference, case, options)
        elif options.step == "covariance":
            result = measure_covariance(factories[options.variant], model, case, options.out)
        else:
            result = measure_memory(factories[options.variant], model, case, options.step)
    except Exception as error:
        result = {"raised": raised(error)}
    print(json.dumps(result))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
