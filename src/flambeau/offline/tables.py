"""Tables by their suffix: the only entry point to CSV and JSONL."""

from collections.abc import Iterator
from pathlib import Path

from flambeau.errors import RequestError, SetupError
from flambeau.offline import csv_table, json_table
from flambeau.offline.entries import TABLES, InputEntry, Wanted, bad_input, shown


def is_table(path: Path) -> bool:
    """Whether a file has one input per line, by its suffix."""
    return path.suffix.lower() in TABLES


def entries(table: Path, wanted: Wanted) -> Iterator[InputEntry]:
    """The entries of a table, one after the other. An unusable table is one entry, with its error."""
    try:
        with table.open("rb") as file:
            if _is_json(table):
                yield from json_table.entries(file, table, wanted)
            else:
                yield from csv_table.entries(file, table, wanted)
    except RequestError as error:
        yield InputEntry(shown(table), error)
    except OSError as error:
        yield InputEntry(shown(table), bad_input(f"the file cannot be read: {error.strerror}", "missing_file"))


def count(table: Path, wanted: Wanted) -> int:
    """The number of entries in a table. Raises `SetupError` when it lacks the wanted columns."""
    try:
        with table.open("rb") as file:
            return json_table.count(file) if _is_json(table) else csv_table.count(file, table, wanted)
    except RequestError as error:
        raise SetupError(f"{shown(table)} cannot be used: {error.message}") from None
    except OSError:
        return 1  # the entry with this error


def _is_json(table: Path) -> bool:
    return table.suffix.lower() in (".jsonl", ".ndjson")
