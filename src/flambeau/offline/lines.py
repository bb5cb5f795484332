"""Rows to lines of text and back: CSV and JSONL. Every row is one line, so that a file cut short can be mended."""

import csv
import io
import math
from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from flambeau.offline.rows import Layout, Row


class Written(msgspec.Struct, frozen=True):
    """What a later start must know of a row: which input it is of, and whether that failed."""

    input: str
    code: str | None = None


class Lines(Protocol):
    """A text format of rows."""

    header: bytes
    """The first line of a file, with its end; empty where the format has none."""

    def encode(self, rows: Iterable[Row]) -> bytes:
        """Whole lines, one for each row."""
        ...

    def read(self, line: bytes) -> Written:
        """What a line is of. Raises `ValueError` for one that we have not written."""
        ...


class JsonLines:
    """A JSON object a line; all have the same keys."""

    header = b""
    _decoder = msgspec.json.Decoder(Written)

    def encode(self, rows: Iterable[Row]) -> bytes:
        return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)

    def read(self, line: bytes) -> Written:
        return self._decoder.decode(line)


class CsvLines:
    """Cells with commas between them; lists in a cell are JSON, and line ends within one are escaped."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.header = self._join([layout.flat_columns])

    def encode(self, rows: Iterable[Row]) -> bytes:
        return self._join([_cell(cell) for cell in self._layout.flat(row).values()] for row in rows)

    def read(self, line: bytes) -> Written:
        [cells] = csv.reader([line.decode()])
        row = dict(zip(self._layout.flat_columns, cells, strict=True))
        return Written(row["input"], row["code"] or None)

    def _join(self, rows: Iterable[Iterable[str]]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def _cell(value: Any) -> str:
    if isinstance(value, msgspec.Raw):
        text = bytes(value)
        if text.startswith(b'"'):
            return _cell(msgspec.json.decode(text))
        return "" if text == b"null" else text.decode()
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return msgspec.json.encode(value).decode()
    return str(value).replace("\r", "\\r").replace("\n", "\\n")
