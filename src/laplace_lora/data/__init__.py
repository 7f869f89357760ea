"""People's own data files: rows of JSONL or CSV, made into batches of token ids."""

from laplace_lora.data.encoding import Encoder
from laplace_lora.data.files import Row
from laplace_lora.data.labels import LabelReader, NoLabels, RealReader
from laplace_lora.data.layouts import Layout, default_answers, layout_of
from laplace_lora.data.scan import DataFile, scan
from laplace_lora.data.sources import RowSource, Source, Style, open_rows, provenance, shown_source
from laplace_lora.data.templates import RowFormat, row_format

__all__ = [
    "DataFile",
    "Encoder",
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
    "layout_of",
    "open_rows",
    "provenance",
    "row_format",
    "scan",
    "shown_source",
]
