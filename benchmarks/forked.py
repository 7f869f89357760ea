"""Measurements in processes of their own, forked from one that has imported everything: imports last longer."""

import ctypes
import gc
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: No process is waited for longer (seconds).
PROCESS_LIMIT = 240.0


class SkippedError(Exception):
    """A measurement was not made; says why."""


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what the function returns, run in a fork of this process, which must not have computed anything yet."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sending.send(work(*arguments)))
    process.start()
    sending.close()
    try:
        if not receiving.poll(PROCESS_LIMIT):
            raise SkippedError(f"not done within {PROCESS_LIMIT:.0f} s")
        return receiving.recv()
    except EOFError:
        process.join()
        raise SkippedError(f"its process ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def return_freed_blocks() -> None:
    """Let malloc give freed blocks back at once, so that a peak says what was in use."""
    libc = ctypes.CDLL(None)
    # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, in bytes.
    libc.mallopt(-3, 65536)
    libc.mallopt(-1, 65536)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the high-water mark of a call above what was resident before it; see :func:`return_freed_blocks`."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    reset_high_water_mark()
    before = resident_bytes()
    call()
    return high_water_mark() - before


def resident_bytes() -> int:
    """Return the resident size now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this benchmark reads /proc/self/status; run it on Linux")


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
