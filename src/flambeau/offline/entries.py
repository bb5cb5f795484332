"""The entries to be predicted, and the user's options for finding them. Values only; no input is opened here."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from flambeau.errors import Code, RequestError
from flambeau.types import Payload

WantedKind = Literal["image", "text", "audio", "tensor", "python"]

IMAGES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"})
"""Suffixes of the files that an image model takes from a folder."""

SOUNDS = frozenset({".wav", ".wave", ".flac"})
"""Suffixes of the files that a model of sound takes from a folder."""

FILES = ("image", "audio")
"""The kinds of models whose inputs are files, which tables name."""

TABLES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson"})
"""Suffixes of the files with one input per line."""

CSV = frozenset({".csv", ".tsv"})
"""Those of them whose lines are cells."""

PATH_COLUMNS = ("path", "file", "image", "filename")
"""The columns of a table that may name an image, in the order of the search."""

TEXT_COLUMNS = ("text", "sentence", "input")
"""The columns of a table that may hold a text, in the order of the search."""

LARGEST = 128 * 1024 * 1024
"""Most bytes of a file, or of a line of a table."""


@dataclass(frozen=True, slots=True)
class InputEntry:
    """The input of one row: its name, and a file to read, a payload, or the error if there is neither."""

    name: str
    content: Path | Payload | RequestError


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The kind of the model, and the columns of tables that the user named.

    `column` is the column with the paths of images or the texts, or the field of a JSON line; `columns` are those with
    the numbers of a CSV line. `missing`: a cell without a number is one that is missing.
    """

    kind: WantedKind
    column: str | None = None
    columns: tuple[str, ...] = ()
    missing: bool = False


_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")


def shown(path: str | Path) -> str:
    """A path as text for a row: always one line, and always UTF-8 (a file name on Linux may be something else)."""
    text = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def either(names: tuple[str, ...]) -> str:
    """Names as part of a sentence: "a, b or c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def bad_input(message: str, code: Code = "input_rejected") -> RequestError:
    """The error of an entry that never reaches the model."""
    return RequestError(message, code=code)


def path_entry(text: str, table: Path) -> InputEntry:
    """The image that a line of a table names. Raises `RequestError` when it names none."""
    if not text or "\0" in text:
        raise bad_input("the line names no file")
    return InputEntry(shown(text), table.parent / text)


def lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, with their line ends. A longer line is cut to `LARGEST` bytes, to fit in memory."""
    while line := file.readline(LARGEST):
        rest = line
        while len(rest) == LARGEST and not rest.endswith(b"\n"):
            rest = file.readline(LARGEST)
        yield line
