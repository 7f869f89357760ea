"""What surrounds every verb: one line for every error, and an exit status that says which kind it was."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laplace_lora.commands.console import Console

#: Exit statuses: a foreseen error, an unforeseen one (a bug), an interruption (as shells count it).
FAILED, BROKEN, INTERRUPTED = 1, 70, 130
#: Set this variable to see the whole traceback of an error.
TRACEBACK = "LAPLACE_LORA_TRACEBACK"


@contextmanager
def session(quiet: bool, json_log: bool) -> Iterator["Console"]:
    """Run a verb; whatever goes wrong ends in one line on standard error.

    Args:
        quiet: No messages but warnings.
        json_log: Messages as JSON.

    Yields:
        Where the verb's messages go.

    Raises:
        SystemExit: Something went wrong.
    """
    from laplace_lora.commands.console import Console
    from laplace_lora.errors import LaplaceLoRAError

    console = Console(quiet, json_log)
    try:
        _hush_libraries()
        with console.warnings_as_lines():
            yield console
    except KeyboardInterrupt:
        console.error("interrupted; nothing was written.")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read standard output has left. Python would complain once more while flushing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(FAILED) from None
    except LaplaceLoRAError as error:
        _traceback_if_wanted(error)
        console.error(str(error))
        raise SystemExit(FAILED) from None
    except Exception as error:
        _traceback_if_wanted(error)
        first = next(iter(str(error).splitlines()), "")
        console.error(
            f"internal error, {type(error).__name__}: {first[:300]}. Please report it; {TRACEBACK}=1 shows where it "
            "happened."
        )
        raise SystemExit(BROKEN) from None


def _traceback_if_wanted(error: Exception) -> None:
    if os.environ.get(TRACEBACK):
        raise error


def _hush_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
