"""Seconds and memory of a call on a GPU or a CPU."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]


class Meter:
    """Measures calls on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synchronise(self) -> None:
        """Wait until the device has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Call) -> float:
        """Time one call, to its end on the device."""
        self.synchronise()
        start = time.perf_counter()
        call()
        self.synchronise()
        return time.perf_counter() - start

    def peak_bytes(self, call: Call) -> int | None:
        """Return how far a call rises above what is resident before it; None where that cannot be seen.

        On a GPU that is exact: what the allocator handed out. On a CPU it is the process's high-water mark, in
        which memory that was freed before and is taken again does not show.
        """
        self.synchronise()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            call()
            self.synchronise()
            return torch.cuda.max_memory_allocated(self.device) - before
        if not _status_bytes("VmHWM"):
            call()
            return None
        Path("/proc/self/clear_refs").write_text("5")  # 5 resets the high-water mark (proc(5))
        before = _status_bytes("VmRSS")
        call()
        return _status_bytes("VmHWM") - before

    def release(self) -> None:
        """Give back what a failed or finished measurement held."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def interleaved(self, calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
        """Time calls in turn, every other round in reverse, so that a drifting clock favours none."""
        found: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(repeats):
            for name in list(calls) if repeat % 2 == 0 else list(reversed(calls)):
                found[name].append(self.seconds(calls[name]))
        return found


def median_ratio(seconds: Mapping[str, list[float]], name: str, over: str) -> float | None:
    """Return the median of the rounds' ratios, or None where one of the two was not measured."""
    if name not in seconds or over not in seconds:
        return None
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[over], strict=True))


def describe_failure(error: BaseException) -> str:
    """Say in one line what a call raised."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0
