"""People's own data files: rows of JSONL or CSV, made into batches of token ids."""

import importlib
from typing import TYPE_CHECKING, Any

from laplace_lora.data.files import Row
from laplace_lora.data.folds import FoldRows
from laplace_lora.data.labels import LabelReader, NoLabels, RealReader
from laplace_lora.data.layouts import Layout, default_answers, layout_of
from laplace_lora.data.scan import DataFile, scan
from laplace_lora.data.sources import RowSource, Source, Style, described, open_rows, provenance
from laplace_lora.data.templates import LETTERS, RowFormat, row_format

if TYPE_CHECKING:
    from laplace_lora.data.encoding import Encoder

__all__ = [
    "LETTERS",
    "DataFile",
    "Encoder",
    "FoldRows",
    "LabelReader",
    "Layout",
    "NoLabels",
    "RealReader",
    "Row",
    "RowFormat",
    "RowSource",
    "Source",
    "Style",
    "default_answers",
    "described",
    "layout_of",
    "open_rows",
    "provenance",
    "row_format",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name != "Encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # It needs torch, for which a list of tasks must not wait.
    return importlib.import_module(f"{__name__}.encoding").Encoder
