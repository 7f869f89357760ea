"""What surrounds every verb: one line for every error, and an exit status that says which kind it was."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laplace_lora.commands.console import Console

#: Exit statuses: a foreseen error, an unforeseen one (a bug), Ctrl-C and a request to end (as shells count them).
FAILED, BROKEN, INTERRUPTED, TERMINATED = 1, 70, 130, 143
#: Set this variable to see the whole traceback of an error.
TRACEBACK = "LAPLACE_LORA_TRACEBACK"


@contextmanager
def session(quiet: bool, json_log: bool, kept: str = "nothing was written.") -> Iterator["Console"]:
    """Run a verb; whatever goes wrong ends in one line on standard error.

    Args:
        quiet: No messages but warnings.
        json_log: Messages as JSON.
        kept: What a verb that is interrupted leaves behind.

    Yields:
        Where the verb's messages go.

    Raises:
        SystemExit: Something went wrong.
    """
    # Where they are installed, these say on import what this machine cannot do for them.
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        from laplace_lora.commands.console import Console
        from laplace_lora.errors import LaplaceLoRAError
    except KeyboardInterrupt:  # torch takes seconds to import
        print("laplace-lora: interrupted; nothing was written.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None

    console = Console(quiet, json_log)
    try:
        _hush_libraries(downloads=console.progress)
        with _ended_politely(), console.warnings_as_lines():
            yield console
    except _Terminated:
        console.error(f"asked to end; {kept}")
        raise SystemExit(TERMINATED) from None
    except KeyboardInterrupt:
        console.error(f"interrupted; {kept}")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read standard output has left. Python would complain once more while flushing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(FAILED) from None
    except LaplaceLoRAError as error:
        _traceback_if_wanted(error)
        console.error(str(error))
        raise SystemExit(FAILED) from None
    except OSError as error:
        _traceback_if_wanted(error)
        about = _where(error) + (f"{error.filename}: " if error.filename else "")
        console.error(f"{about}{error.strerror or error}; check the path, its permissions and the free space.")
        raise SystemExit(FAILED) from None
    except Exception as error:
        _traceback_if_wanted(error)
        where = _where(error)
        if _out_of_memory(error):
            console.error(f"{where}the memory is full; give a smaller --batch-size, or --top-k to predict.")
            raise SystemExit(FAILED) from None
        first = next(iter(str(error).splitlines()), "")
        console.error(
            f"{where}internal error, {type(error).__name__}: {first[:300]}. Please report it; {TRACEBACK}=1 shows "
            "where it happened."
        )
        raise SystemExit(BROKEN) from None


class _Terminated(BaseException):
    """A request to end, raised like Ctrl-C so that half-written files are removed on the way."""


@contextmanager
def _ended_politely() -> Iterator[None]:
    def end(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _where(error: Exception) -> str:
    """Return the job that an error was in, where the verb has noted it."""
    return "".join(f"{note}: " for note in getattr(error, "__notes__", ()))


def _out_of_memory(error: Exception) -> bool:
    from torch import OutOfMemoryError

    # On the CPU it is a RuntimeError of "DefaultCPUAllocator: can't allocate memory".
    return isinstance(error, MemoryError | OutOfMemoryError) or "can't allocate memory" in str(error)


def _traceback_if_wanted(error: Exception) -> None:
    if os.environ.get(TRACEBACK):
        raise error


def _hush_libraries(downloads: bool) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
