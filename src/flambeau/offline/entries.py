"""What there is to be predicted, and what the user said about how to find it. Values only; nothing is read here."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from flambeau.errors import Code, RequestError
from flambeau.types import Payload

WantedKind = Literal["image", "tensor", "python"]

IMAGES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"})
"""Suffixes of the files that are taken out of a folder for an image model."""

TABLES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})
"""Suffixes of the files that hold one input a line."""

PATH_COLUMNS = ("path", "file", "image", "filename")
"""The columns of a table that may name an image, in the order in which they are looked for."""

LARGEST = 128 * 1024 * 1024
"""Bytes; no file and no line of a table that is longer is read."""


@dataclass(frozen=True, slots=True)
class InputEntry:
    """A row to be: what it is called, and the file to read for it, its payload, or why it has neither."""

    name: str
    content: Path | Payload | RequestError


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The kind of the model, and the columns of tables that the user named.

    `column` names the path of an image, or the field of a JSON line; `columns` the numbers of a CSV line.
    """

    kind: WantedKind
    column: str | None = None
    columns: tuple[str, ...] = ()


_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


def shown(path: str | Path) -> str:
    """A path as the text of a row: always one line, and always UTF-8, which a file's name on Linux need not be."""
    text = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def either(names: tuple[str, ...]) -> str:
    """Names as a part of a sentence: "a, b or c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def bad_input(message: str, code: Code = "input_rejected") -> RequestError:
    """Why one entry cannot be predicted, where it never reaches the model."""
    return RequestError(message, code=code)


def path_entry(text: str, table: Path) -> InputEntry:
    """The image that a line of a table names. Raises `RequestError` when it names none."""
    if not text or "\0" in text:
        raise bad_input("the line names no file")
    return InputEntry(shown(text), table.parent / text)


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file with their ends. One that is too long is cut to `LARGEST` bytes, to fit in memory."""
    while line := file.readline(LARGEST):
        rest = line
        while len(rest) == LARGEST and not rest.endswith(b"\n"):
            rest = file.readline(LARGEST)
        yield line
