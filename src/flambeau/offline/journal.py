"""A file of rows that a later start can go on from, whatever ended the one before it.

    out.csv            the rows; of a Parquet file they are kept in out.parquet.partial.jsonl until all are there
    out.csv.run.json   what the rows depend on: the model and the options

Rows are appended some at a time and handed to the kernel at once, so that a killed process loses none but the line that
it was writing; that one is cut off by the next start. It does not know what a row means.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from flambeau.bundle.storage import Bundle
from flambeau.errors import SetupError
from flambeau.offline import parquet
from flambeau.offline.rows import Layout, Lines, Row, WrittenRow
from flambeau.version import VERSION


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `*.run.json`. `rows` and `errors` are there when the run is complete.

    `tables` are the size in bytes and the time of change of each table among the inputs.
    """

    flambeau: str = VERSION
    model: str
    bundle: str
    engine: str
    options: dict[str, Any]
    tables: dict[str, tuple[int, int]]
    rows: int | None = None
    errors: int | None = None


def identify(bundle: Bundle) -> str:
    """A sha256 of all that a bundle's answers depend on."""
    manifest = bundle.manifest
    told = msgspec.json.encode([manifest.pipeline, manifest.outputs, sorted(manifest.members.items())])
    return hashlib.sha256(told).hexdigest()


@dataclass(frozen=True)
class JournalPlace:
    """The files of a run, named after the one that the user wants."""

    target: Path
    parquet: bool

    @property
    def rows(self) -> Path:
        """Where rows are appended."""
        return self._beside(".partial.jsonl") if self.parquet else self.target

    @property
    def record(self) -> Path:
        """What the rows depend on."""
        return self._beside(".run.json")

    @property
    def own(self) -> frozenset[Path]:
        """All of them, resolved."""
        return frozenset(path.resolve() for path in (self.target, self.rows, self.record))

    def _beside(self, suffix: str) -> Path:
        return self.target.with_name(self.target.name + suffix)


class Journal:
    """The rows of a run, open for more of them."""

    def __init__(self, place: JournalPlace, record: Record, lines: Lines, *, overwrite: bool) -> None:
        """Open what an earlier start has left, or begin. Raises `SetupError` when it is not of this run."""
        self.place = place
        self._record = record
        self._lines = lines
        before = None if overwrite else self._earlier()
        self._whole = place.parquet and place.target.exists() and before is not None and before.rows is not None
        if self._whole:  # a Parquet file is written once
            return
        with _told(place.rows):
            self._file: BinaryIO = place.rows.open("ab")
            self._lock()
            if before is None:
                self._file.truncate(0)
                if place.parquet:
                    place.target.unlink(missing_ok=True)
                self._write_record(record)

    def _earlier(self) -> Record | None:
        """The record of an earlier start of this run. Raises `SetupError` where a file is of another, or not ours."""
        place = self.place
        there = [path for path in (place.target, place.rows) if path.exists() and path.stat().st_size]
        if not there:
            return None
        try:
            before = msgspec.json.decode(place.record.read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            raise SetupError(
                f"{there[0]} exists, and nothing tells that `flambeau predict` wrote it: "
                "name another file with -o, or replace it with --overwrite"
            ) from None
        if difference := _difference(before, self._record):
            raise SetupError(
                f"{place.target} was begun {difference}: "
                "give the same command to go on, name another file with -o, or start anew with --overwrite"
            )
        return before

    def written(self) -> Iterator[WrittenRow]:
        """The rows that are there, in order; what is left of a line that was cut short is removed at the end."""
        if self._whole:
            yield from parquet.written(self.place.target)
            return
        end, header = 0, self._lines.header
        with _told(self.place.rows), self.place.rows.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                if number == 1 and header:
                    if line != header:
                        raise self._strange(number)
                else:
                    try:
                        yield self._lines.read(line)
                    except ValueError:
                        raise self._strange(number) from None
                end += len(line)
            self._file.truncate(end)
            if not end:
                self._append(header)

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows. Raises `SetupError` when the disk takes no more, or the file cannot be added to."""
        if self._whole:
            raise SetupError(f"{self.place.target} is complete and cannot be added to: start anew with --overwrite")
        with _told(self.place.rows):
            self._append(self._lines.encode(rows))

    def finish(self, *, rows: int, errors: int, layout: Layout) -> None:
        """All rows are there: say so in the record, and make the Parquet file of them where one is wanted.

        Killed at any point of this, the next start finds all rows and does it again.
        """
        place = self.place
        if self._whole:
            return
        with _told(place.target):
            os.fsync(self._file.fileno())
            if place.parquet:
                parquet.write(place.target, place.rows, layout)
            self._write_record(msgspec.structs.replace(self._record, rows=rows, errors=errors))
            if place.parquet:
                place.rows.unlink()

    def close(self) -> None:
        """Let go of the files; a second call does nothing."""
        if not self._whole:
            self._file.close()

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def _strange(self, number: int) -> SetupError:
        return SetupError(f"line {number} of {self.place.rows} is not one of ours: start anew with --overwrite")

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: whoever starts two runs into one file there gets what they asked for
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise SetupError(f"{self.place.target} is being written by another run: wait for it, or stop it") from None

    def _write_record(self, record: Record) -> None:
        fresh = self.place.record.with_name(self.place.record.name + ".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        fresh.replace(self.place.record)


def _difference(before: Record, now: Record) -> str | None:
    """What the two runs do not share, as the middle of a sentence."""
    if before.bundle != now.bundle:
        return f"with another model ({before.model} {before.bundle[:8]}, and this is {now.model} {now.bundle[:8]})"
    if before.engine != now.engine:
        return f"with the engine {before.engine}, and this is {now.engine}"
    for name in now.options.keys() | before.options.keys():
        old, new = before.options.get(name), now.options.get(name)
        if old != new:
            return f"with --{name} {_value(old)}, and now it is {_value(new)}"
    for table, found in now.tables.items():
        if before.tables.get(table, found) != found:
            return f"before {table} was changed"
    return None


def _value(value: object) -> str:
    return "not set" if value in (None, [], False) else "set" if value is True else str(value)


@contextlib.contextmanager
def _told(file: Path) -> Iterator[None]:
    """What the file system refuses, as the sentence for the operator."""
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"{file} cannot be written ({error.strerror}): mend that, and the same command goes on from there"
        ) from error
