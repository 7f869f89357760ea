"""What was measured, kept as it comes: the JSON file, the time limit and the table at the end."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "laplace-lora", "laplace-torch", "bayesian-lora")
#: So long after the budget a measurement that is still running is cut off: it cannot be asked to stop.
GRACE_SECONDS = 20.0
STOPPED = 3


class Record:
    """Results of a run. The file is written anew after each of them, so that a cut-off run leaves all it had."""

    def __init__(self, out: Path, budget: float, device: torch.device, settings: dict[str, Any]) -> None:
        self.out = out
        self.end = time.monotonic() + budget
        self.running = "setting up"
        self.measurements: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []
        self._began = time.monotonic()
        self._lock = threading.RLock()
        self._machine = machine(device)
        self._settings = settings
        self._watch = threading.Timer(budget + GRACE_SECONDS, self._stop)
        self._watch.daemon = True
        self._watch.start()

    @property
    def remaining(self) -> float:
        """Seconds left of the budget."""
        return self.end - time.monotonic()

    def add(self, **measurement: Any) -> None:
        """Keep a measurement and write the file."""
        with self._lock:
            self.measurements.append(measurement)
            self._write()

    def skip(self, name: str, why: str) -> None:
        """Keep the name of what was not measured."""
        with self._lock:
            self.skipped.append({"name": name, "why": why})
            self._write()

    def fits(self, name: str, seconds: float = 0.0) -> bool:
        """Say whether a measurement still fits into the budget; list it as skipped if not."""
        self.running = name
        if seconds < self.remaining:
            print(f"[{time.monotonic() - self._began:5.0f} s] {name}", file=sys.stderr, flush=True)
            return True
        self.skip(name, f"no time left (needs about {seconds:.1f} s)" if seconds else "no time left")
        return False

    def finish(self) -> None:
        """Write the file for the last time and print the table."""
        self._watch.cancel()
        with self._lock:
            self._write()
            print(self.table(), flush=True)

    def table(self) -> str:
        """Return everything as aligned text; the table comes last."""
        found = self._machine["gpu"] or "CPU"
        lines = [f"{found}, {self._settings}", ""]
        lines += [f"skipped: {entry['name']}: {entry['why'][:110]}" for entry in self.skipped]
        header = ["K", "B", "of", "what", "s", "/forward", "/passes", "/step", "peak MiB", "note"]
        rows, shown = [], set()
        for m in self.measurements:
            reference = (m["classes"], m["batch"], m["what"]) if m["of"] == "reference" else None
            if reference is None or reference not in shown:
                rows.append(_cells(m))
                shown.add(reference)
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header) - 1)]
        for row in [header, ["-" * width for width in widths] + ["----"], *rows]:
            padded = enumerate(zip(row[:-1], widths, strict=True))
            cells = [cell.ljust(width) if i in (2, 3) else cell.rjust(width) for i, (cell, width) in padded]
            lines.append(f"|{'|'.join(cells)}|{row[-1]}")
        return "\n".join(lines)

    def _write(self) -> None:
        results = {
            "settings": self._settings,
            "seconds": round(time.monotonic() - self._began, 1),
            "measurements": self.measurements,
            "skipped": self.skipped,
        }
        command = " ".join(["python", "benchmarks/gpu/single.py", *sys.argv[1:]])
        document = {"command": command, "machine": self._machine, "results": results}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        partial = self.out.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=2) + "\n")
        partial.replace(self.out)

    def _stop(self) -> None:
        with self._lock:
            self.skip(self.running, "was still running at the time limit; what came after it was not tried")
            print(self.table(), flush=True)
            os._exit(STOPPED)


def machine(device: torch.device) -> dict[str, Any]:
    """Describe the device and the versions."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    versions: dict[str, str] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": device.type,
        "gpu": gpu.name if gpu else None,
        "processor": gpu.name if gpu else "CPU",
        "gpu_memory_bytes": gpu.total_memory if gpu else None,
        "driver": _driver() if gpu else None,
        "cuda": torch.version.cuda,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return found[0] if found else None


def _cells(m: dict[str, Any]) -> list[str]:
    def number(key: str, digits: int, scale: float = 1.0) -> str:
        value = m.get(key)
        return "" if value is None else f"{value / scale:.{digits}f}"

    return [
        str(m["classes"]),
        str(m["batch"]),
        m["of"],
        m["what"],
        number("seconds", 4),
        number("over_forward", 2),
        number("over_passes", 3),
        number("over_training_step", 3),
        number("peak_bytes", 1, 2**20),
        m.get("note", ""),
    ]
