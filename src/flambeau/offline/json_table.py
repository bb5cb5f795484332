"""JSONL: each line is an input, or names a file. The pipeline, not this module, knows the shape that a model takes."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from flambeau.errors import RequestError
from flambeau.offline.entries import (
    FILES,
    LARGEST,
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

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANYTHING = msgspec.json.Decoder(msgspec.Raw)
_FIELDS_OF: dict[str, tuple[str, ...]] = {
    "image": PATH_COLUMNS,
    "audio": PATH_COLUMNS,
    "text": ("input", *TEXT_COLUMNS),
}
_TEXT = msgspec.json.Decoder(str)


def entries(file: BinaryIO, table: Path, wanted: Wanted) -> Iterator[InputEntry]:
    """An entry for each line that is not empty: the value under `input` (or `wanted.column`), else the whole line."""
    for number, line in enumerate(lines(file), 1):
        if line.isspace():
            continue
        name = f"{shown(table)}:{number}"
        try:
            value = _value(line, wanted)
            yield (
                path_entry(_text(value), table) if wanted.kind in FILES else InputEntry(name, Payload("json", value))
            )
        except RequestError as error:
            yield InputEntry(name, error)


def count(file: BinaryIO) -> int:
    """The number of entries."""
    return sum(1 for line in lines(file) if not line.isspace())


def _value(line: bytes, wanted: Wanted) -> bytes:
    """The JSON text of a line's input. Raises `RequestError`."""
    if len(line) >= LARGEST:
        raise bad_input(f"the line is longer than {LARGEST} bytes", "body_too_large")
    try:
        if not line.isascii():
            line.decode()  # the decoders below skip strings without checking them
        if not line.lstrip().startswith(b"{"):
            return bytes(_ANYTHING.decode(line))
        fields = _FIELDS.decode(line)
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        raise bad_input(f"the line is not JSON: {reason}", "invalid_json") from None
    except UnicodeDecodeError:
        raise bad_input("the line is not JSON: it is not text in UTF-8", "invalid_json") from None
    except RecursionError:
        raise bad_input("the line is nested too deep", "json_too_deep") from None
    names = (wanted.column,) if wanted.column else _FIELDS_OF.get(wanted.kind, ("input",))
    for name in names:
        if name in fields:
            return bytes(fields[name])
    if wanted.kind in FILES or wanted.column:
        raise bad_input(f"the line has no field {either(names)}")
    return line.strip()


def _text(value: bytes) -> str:
    try:
        return _TEXT.decode(value)
    except msgspec.DecodeError:
        raise bad_input("the line names no file: the path must be text") from None
