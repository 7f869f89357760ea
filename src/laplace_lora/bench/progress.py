"""Progress over a whole grid: what is being done, how much is left, and how long that will take."""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from tqdm import tqdm


class Progress:
    """A bar over jobs of several kinds, whose times differ much.

    The time left is the sum of what the jobs to come took on the average so far, kind by kind; a kind of which none has
    been done counts as the average of all.
    """

    def __init__(self, kinds: Sequence[Hashable], shown: bool, say: Callable[[str], None] = lambda line: None) -> None:
        """Begin.

        Args:
            kinds: Kind of every job that is to be done.
            shown: Whether to show the bar.
            say: Takes a line for every job that begins, where there is no bar.
        """
        self._say = say
        self._left: dict[Hashable, int] = defaultdict(int)
        for kind in kinds:
            self._left[kind] += 1
        self._took: dict[Hashable, list[float]] = defaultdict(list)
        self._bar = tqdm(
            total=len(kinds),
            desc="bench",
            unit="job",
            disable=not shown,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
        )

    @contextmanager
    def job(self, kind: Hashable, about: str) -> Iterator[None]:
        """Do one job.

        Args:
            kind: Its kind; one that was not foreseen is counted now.
            about: What the bar says.

        Yields:
            Nothing.
        """
        if not self._left[kind]:
            self._left[kind] += 1
        done = sum(map(len, self._took.values()))
        self._bar.total = done + sum(self._left.values())
        left = duration(self.left())
        self._bar.set_postfix_str(f"{left} left; {about}")
        self._say(f"{about}: job {done + 1} of {self._bar.total}, {left} left")
        start = time.perf_counter()
        yield
        self._took[kind].append(time.perf_counter() - start)
        self._left[kind] -= 1
        self._bar.update()

    def left(self) -> float | None:
        """Return the seconds left; None before any job is done that was not done before."""
        all_times = [seconds for times in self._took.values() for seconds in times]
        if not all_times:
            return None
        usual = statistics.fmean(all_times)
        return sum(
            count * (statistics.fmean(self._took[kind]) if self._took[kind] else usual)
            for kind, count in self._left.items()
        )

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


def beside_bars() -> AbstractContextManager[None]:
    """Hold the bars back while something else is written on standard error."""
    return tqdm.external_write_mode(file=sys.stderr)


def duration(seconds: float | None) -> str:
    """Write a duration.

    Args:
        seconds: How long; None if that is not known.

    Returns:
        Such as ``2 h 05 min``, ``4 min`` or ``30 s``.
    """
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
