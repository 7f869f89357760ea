"""Rows of a JSONL or CSV file, one at a time, each with the line that it stands on."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from laplace_lora.errors import DataFileError

# csv's own limit, 131,072 characters, is less than a long passage.
_LONGEST_CELL = 2**26
_HEADER = 2**16
_JSON_SUFFIXES = (".jsonl", ".ndjson")


class Row(NamedTuple):
    """One example as the file holds it.

    Attributes:
        line: Line number, counted from 1; of a CSV row over several lines the last one.
        fields: Column names to values; a CSV's values are strings.
    """

    line: int
    fields: dict[str, Any]


def file_rows(path: Path, name: str) -> Iterator[Row]:
    """Read rows, holding one at a time. Blank lines are skipped.

    Args:
        path: A ``.jsonl`` / ``.ndjson`` file (one JSON object per line) or a ``.csv`` file with a header; another
            suffix is taken as JSONL if the file begins with a brace, as CSV otherwise.
        name: What messages call the file.

    Yields:
        The rows, in order.

    Raises:
        DataFileError: The file cannot be read, or a row cannot be; names file and line.
    """
    try:
        # A pipe would be empty at the second reading, and a device may never end.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DataFileError(
                f"{name} is no regular file, and data are read more than once; save them to a file first (predict "
                "also takes - for standard input)."
            )
        with path.open("rb") as file:
            yield from (_json_rows if _is_json(path, file) else _csv_rows)(file, name)
    except OSError as error:
        raise DataFileError(f"{name} cannot be read ({error.strerror or error}); check the path.") from error


def is_text(value: str) -> bool:
    """Say whether a string can be written as UTF-8: not with half of a surrogate pair, which JSON can escape.

    Args:
        value: Any string.

    Returns:
        Whether it can.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_json(path: Path, file: io.BufferedReader) -> bool:
    suffix = path.suffix.lower()
    if suffix in _JSON_SUFFIXES or suffix == ".csv":
        return suffix != ".csv"
    start = file.peek(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    return start[:1] in (b"{", b"[")


def _json_rows(file: io.BufferedReader, name: str) -> Iterator[Row]:
    for number, raw in enumerate(file, start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            fields = json.loads(text)
        except UnicodeDecodeError:
            raise DataFileError(f"{name}:{number} is not UTF-8 text; save the file as UTF-8.") from None
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or type(error).__name__
            raise DataFileError(
                f"{name}:{number} is not a JSON object ({reason}); write one object per line, or use .csv."
            ) from None
        if not isinstance(fields, dict):
            raise DataFileError(
                f'{name}:{number} is a JSON {type(fields).__name__}, not an object; write one object, like {{"text": '
                '"...", "label": 0}, per line.'
            )
        yield Row(number, fields)


def _csv_rows(file: io.BufferedReader, name: str) -> Iterator[Row]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))  # of the whole process
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text, strict=True)
    try:
        top = file.peek(_HEADER).split(b"\n")[0]
        if b"," not in top:
            # Spreadsheets of many countries separate by semicolons, others by tabs.
            delimiter = next((mark for mark in (";", "\t") if mark.encode() in top), ",")
            reader = csv.DictReader(text, strict=True, delimiter=delimiter)
        header = reader.fieldnames
        if header is not None:
            reader.fieldnames = header = [column.strip() for column in header]
        if header is not None and (len(set(header)) != len(header) or "" in header):
            raise DataFileError(f"{name}:1 has unnamed or repeated columns; give every column a name of its own.")
        for fields in reader:
            if None in fields or None in fields.values():  # DictReader's marks for too many and too few
                raise DataFileError(
                    f"{name}:{reader.line_num} has not the {len(header or ())} cells of the header; quote cells that "
                    "hold commas or line breaks."
                )
            yield Row(reader.line_num, dict(fields))
    except UnicodeDecodeError:
        raise DataFileError(
            f"{name}:{reader.line_num + 1} or soon after is not UTF-8 text; save it as UTF-8."
        ) from None
    except csv.Error as error:
        # DictReader's count stands at the last good row; a quote that is never closed runs to the end.
        first, last = reader.line_num + 1, reader.reader.line_num
        lines = f"{first} to {last}" if last > first else str(first)
        raise DataFileError(f"{name}:{lines} is not CSV ({error}); quote cells as RFC 4180 says.") from None
    finally:
        text.detach()
