"""Rows of one split as they were found, before any filter."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Found(NamedTuple):
    """Rows, and what is known of where they come from.

    Attributes:
        rows: As they were found: the hub's columns, or ours.
        source: Where they were found, for people.
        official: The hub's split that these rows are, judged by their number; None for a split of somebody's own.
        passed_over: A file of the split's own name that is another split; empty for none.
        counted: Whether ``official`` was judged by the number of rows; else they came from the hub itself.
    """

    rows: list[Mapping[str, Any]]
    source: str
    official: str | None
    counted: bool = True
    passed_over: str = ""
