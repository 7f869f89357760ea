"""People's own data files: rows of JSONL or CSV, made into batches of token ids."""

from laplace_lora.data.encoding import Encoder
from laplace_lora.data.files import Row, open_rows
from laplace_lora.data.labels import LabelReader, NoLabels, RealReader
from laplace_lora.data.layouts import Layout, default_answers, layout_of
from laplace_lora.data.scan import DataFile, scan
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
    "default_answers",
    "layout_of",
    "open_rows",
    "row_format",
    "scan",
]
