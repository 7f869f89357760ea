"""What a verb tells its user: lines for people, or one JSON object per line for a log; on standard error."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@dataclasses.dataclass(frozen=True)
class Console:
    """Where messages go. Results that were asked for on standard output never pass through here.

    Attributes:
        quiet: Say nothing but warnings and errors.
        json_log: Write every message as a JSON object with ``event``, ``message`` and its figures.
    """

    quiet: bool = False
    json_log: bool = False

    @property
    def progress(self) -> bool:
        """Whether to show progress bars."""
        return not (self.quiet or self.json_log)

    def say(self, event: str, message: str, **figures: Any) -> None:
        """Say what has been done or found.

        Args:
            event: One word for the log.
            message: One line for people.
            **figures: What the line says, for the log.
        """
        if not self.quiet:
            self._write(event, message, figures)

    def warn(self, message: str) -> None:
        """Say what the user should look at, also in quiet mode.

        Args:
            message: One line.
        """
        self._write("warning", message, {}, prefix="warning: ")

    def error(self, message: str) -> None:
        """Say why nothing was done.

        Args:
            message: One line.
        """
        self._write("error", message, {}, prefix="laplace-lora: ")

    @contextmanager
    def warnings_as_lines(self) -> Iterator[None]:
        """Show Python warnings as one line each, and each of them once.

        Yields:
            Nothing.
        """
        shown: set[str] = set()

        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            text = str(message)
            # Those of other libraries are for developers.
            if issubclass(category, UserWarning) and text not in shown:
                shown.add(text)
                self.warn(text)

        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = show
            yield

    def _write(self, event: str, message: str, figures: dict[str, Any], prefix: str = "") -> None:
        line = " ".join(message.split())
        text = json.dumps({"event": event, "message": line, **figures}) if self.json_log else prefix + line
        print(text, file=sys.stderr, flush=True)
