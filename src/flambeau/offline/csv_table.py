"""CSV: each line is a row of numbers, or names a file. A header is detected.

The first line shows whether commas, semicolons or tabs separate the cells. The shape that a model takes is not known
here; the pipeline knows it.
"""

import csv
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from flambeau.errors import RequestError
from flambeau.offline.entries import (
    FILES,
    PATH_COLUMNS,
    TEXT_COLUMNS,
    InputEntry,
    Wanted,
    bad_input,
    either,
    lines,
    path_entry,
    shown,
)
from flambeau.types import Payload

_SHOWN = 6
_EMPTY = ("", "nan", "na", "null")  # what pandas and R write for a number that is missing
_EXACT = 2.0**63  # from here on, JSON readers treat a whole number as a decimal one anyway


@dataclass(frozen=True, slots=True)
class _CsvLine:
    """The cells of a line or its error, and its number in the file."""

    line: int
    cells: list[str] | RequestError


@dataclass(frozen=True, slots=True)
class _Columns:
    """The indices of the wanted columns, the names (or numbers) of all, and whether the first line is a header."""

    places: tuple[int, ...]
    names: tuple[str, ...]
    headed: bool


def entries(file: BinaryIO, table: Path, wanted: Wanted) -> Iterator[InputEntry]:
    """An entry for each line below the header. Raises `RequestError` for a table without the wanted columns."""
    rows = _rows(file, table)
    first = next(rows, None)
    if first is None:
        return
    columns = _find_columns(first, wanted)
    for row in rows if columns.headed else itertools.chain([first], rows):
        name = f"{shown(table)}:{row.line}"
        try:
            cells = _cells(row, columns)
            if wanted.kind in FILES:
                yield path_entry(cells[0], table)
            elif wanted.kind == "text":
                yield InputEntry(name, _text(cells[0]))
            else:
                yield InputEntry(name, _numbers(cells, columns, missing=wanted.missing))
        except RequestError as error:
            yield InputEntry(name, error)


def count(file: BinaryIO, table: Path, wanted: Wanted) -> int:
    """The number of entries. Raises `RequestError` for a table without the wanted columns."""
    rows = _rows(file, table)
    first = next(rows, None)
    if first is None:
        return 0
    return sum(1 for _ in rows) + (0 if _find_columns(first, wanted).headed else 1)


def _rows(file: BinaryIO, table: Path) -> Iterator[_CsvLine]:
    # A path may contain bytes that are not text: they pass through unchanged, as lone surrogates.
    text = (line.decode("utf-8", "surrogateescape") for line in lines(file))
    first = next(text, "").removeprefix("\N{BYTE ORDER MARK}")
    delimiter = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    taken: list[str] = []  # the lines of a row
    reader = csv.reader(_noted(itertools.chain([first], text), taken), delimiter=delimiter)
    while True:
        taken.clear()
        try:
            cells = next(reader)
            if len(taken) > 1:  # a quote that does not end makes one row of all that follows, without a word
                deque(csv.reader(taken, delimiter=delimiter, strict=True), maxlen=0)
        except StopIteration:
            return
        except csv.Error as error:
            yield _CsvLine(reader.line_num, _no_row(error, reader.line_num, len(taken)))
            continue
        if cells:
            yield _CsvLine(reader.line_num, cells)


def _noted(text: Iterator[str], taken: list[str]) -> Iterator[str]:
    for line in text:
        taken.append(line)
        yield line


def _no_row(error: csv.Error, last: int, count: int) -> RequestError:
    if count < 2:
        return bad_input(f"the line is not CSV: {error}")
    return bad_input(
        f"the quote that opens in line {last - count + 1} makes one row of the lines to {last}, and is not CSV "
        f'({error}): write a quote within a text as ""'
    )


def _find_columns(first: _CsvLine, wanted: Wanted) -> _Columns:
    if isinstance(first.cells, RequestError):
        raise first.cells
    header = tuple(shown(cell.strip()) for cell in first.cells)
    if asked := wanted.columns or ((wanted.column,) if wanted.column else ()):
        for name in asked:
            if name not in header:
                raise bad_input(f"there is no column {name}: the first line has {', '.join(header)}")
            if header.count(name) > 1:
                raise bad_input(f"{header.count(name)} columns are called {name}: give each a name of its own")
        return _Columns(tuple(map(header.index, asked)), header, headed=True)
    if wanted.kind in (*FILES, "text"):
        usual, what = (PATH_COLUMNS, "paths") if wanted.kind in FILES else (TEXT_COLUMNS, "texts")
        lowered = [name.lower() for name in header]
        known = [lowered.index(name) for name in usual if name in lowered]
        if not known and len(header) > 1:
            raise bad_input(f"there is no column {either(usual)}: name the column of the {what} with --column")
        return _Columns((known[0] if known else 0,), header, headed=bool(known))
    headed = all(_number(cell) is None for cell in header) and not (wanted.missing and all(map(_is_empty, header)))
    if len(header) > 1 and header == tuple(map(str, range(len(header)))):
        told = ",".join(header) if len(header) <= _SHOWN else f"{','.join(header[:_SHOWN])},…"
        raise bad_input(
            f"its first line is {told}, as pandas writes a header for columns without names: say --columns {told} if "
            "it is a header, and write a header above it if it is a row"
        )
    names = header if headed else tuple(str(place) for place in range(1, len(header) + 1))
    return _Columns(tuple(range(len(header))), names, headed)


def _cells(row: _CsvLine, columns: _Columns) -> list[str]:
    """The wanted cells. Raises `RequestError`."""
    if isinstance(row.cells, RequestError):
        raise row.cells
    if len(row.cells) != len(columns.names):
        raise bad_input(f"the line has {len(row.cells)} cells where the first line has {len(columns.names)}")
    return [row.cells[place] for place in columns.places]


def _text(cell: str) -> Payload:
    """The text in a cell as JSON. Raises `RequestError`."""
    try:
        return Payload("json", msgspec.json.encode(cell))
    except UnicodeEncodeError:
        raise bad_input("the cell is not text in UTF-8") from None


def _numbers(cells: Sequence[str], columns: _Columns, *, missing: bool) -> Payload:
    """The numbers of a line as JSON: a list, or just the number if there is one column. Raises `RequestError`.

    A number may be `missing`: then an empty cell is null.
    """
    numbers = [_number(cell) for cell in cells]
    for place, cell, number in zip(columns.places, cells, numbers, strict=True):
        if number is None and not (missing and _is_empty(cell)):
            raise bad_input(f"column {columns.names[place]} holds {cell[:40]!r}, which is not a number")
    return Payload("json", msgspec.json.encode(numbers[0] if len(numbers) == 1 else numbers))


def _is_empty(cell: str) -> bool:
    return cell.strip().lower() in _EMPTY


def _number(cell: str) -> int | float | None:
    """The number in a cell, or `None`. A whole number stays one, for models that take only those."""
    text = cell.strip()
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number) or "_" in text:  # only Python reads 1_000 as a number
        return None
    return int(text) if abs(number) < _EXACT and text.lstrip("+-").isdigit() else number
