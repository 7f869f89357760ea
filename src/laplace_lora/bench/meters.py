"""What a method takes: the most memory beyond what was there before it."""

import contextlib
import ctypes
import gc
import threading
from collections.abc import Iterator

import psutil
import torch

_EVERY = 0.01


class Memory:
    """The most memory that was in use, beyond that at the start.

    Attributes:
        peak: Bytes; on a GPU those that torch has allocated there, else what is resident of the process.
    """

    def __init__(self) -> None:
        self.peak = 0

    @contextlib.contextmanager
    def watched(self, device: torch.device) -> Iterator[None]:
        """Watch until the block ends.

        Args:
            device: Where the model is.

        Yields:
            Nothing.
        """
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            yield
            self.peak = torch.cuda.max_memory_allocated(device) - before
            return
        process, done = psutil.Process(), threading.Event()
        _give_back()
        before = process.memory_info().rss

        def look() -> None:
            while not done.wait(_EVERY):
                self.peak = max(self.peak, process.memory_info().rss - before)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _give_back() -> None:
    """Return freed memory to the system: what earlier work has left would hide what the next takes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not every system's allocator can be asked
        ctypes.CDLL(None).malloc_trim(0)
