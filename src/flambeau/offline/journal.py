"""A file of rows that a later run can resume, whatever ended the run before it.

    out.csv            the rows; of a file that is made of all at once, such as Parquet, they are kept in
                       out.parquet.partial.jsonl until all are there
    out.csv.run.json   what the rows depend on: the model and the options

Rows are appended a few at a time and handed to the kernel at once, so that a killed process loses only the line that it
was writing; the next run cuts that line off. It does not know what a row means.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from flambeau.bundle.storage import Bundle
from flambeau.errors import SetupError
from flambeau.offline.rows import Lines, Row, WrittenRow
from flambeau.version import VERSION


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of `*.run.json`. `rows` and `errors` are set once the run is complete.

    `tables` has, for each table among the inputs, its size in bytes and its modification time in nanoseconds.
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
    """A sha256 of everything that a bundle's answers depend on."""
    manifest = bundle.manifest
    told = msgspec.json.encode([manifest.pipeline, manifest.outputs, sorted(manifest.members.items())])
    return hashlib.sha256(told).hexdigest()


@dataclass(frozen=True)
class MadeAtOnce:
    """How a file is made of all rows at once: `write` takes the file and that of the rows, as JSON lines, and `written`
    gives the rows back. `beside` are other files that it writes."""

    write: Callable[[Path, Path], None]
    written: Callable[[Path], Iterator[WrittenRow]]
    beside: tuple[Path, ...] = ()


@dataclass(frozen=True)
class JournalPlace:
    """The files of a run, named after the user's output file."""

    target: Path
    made: MadeAtOnce | None = None

    @property
    def rows(self) -> Path:
        """The file to which rows are appended."""
        return self._beside(".partial.jsonl") if self.made else self.target

    @property
    def record(self) -> Path:
        """The file that records what the rows depend on."""
        return self._beside(".run.json")

    @property
    def own(self) -> frozenset[Path]:
        """The resolved paths of all these files."""
        others = self.made.beside if self.made else ()
        return frozenset(path.resolve() for path in (self.target, self.rows, self.record, *others))

    def _beside(self, suffix: str) -> Path:
        return self.target.with_name(self.target.name + suffix)


class Journal:
    """The rows of a run, open for appending."""

    def __init__(self, place: JournalPlace, record: Record, lines: Lines, *, overwrite: bool) -> None:
        """Resume an earlier run, or begin a new one. Raises `SetupError` when the files belong to another run."""
        self.place = place
        self._record = record
        self._lines = lines
        before = None if overwrite else self._earlier()
        there = place.target.exists() and before is not None and before.rows is not None
        self._whole = place.made if there else None
        if self._whole:  # such a file is written once
            return
        with _told(place.rows):
            self._file: BinaryIO = place.rows.open("ab")
            self._lock()
            if before is None:
                self._file.truncate(0)
                if place.made:
                    place.target.unlink(missing_ok=True)
                self._write_record(record)

    def _earlier(self) -> Record | None:
        """The record of an earlier start of this run. Raises `SetupError` if a file is of another run, or not ours."""
        place = self.place
        there = [path for path in (place.target, place.rows) if path.exists() and path.stat().st_size]
        others = [path for path in (place.made.beside if place.made else ()) if path.exists()]
        if not there and not others:
            return None
        try:
            before = msgspec.json.decode(place.record.read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            raise SetupError(
                f"{[*there, *others][0]} exists, and there is no record that `flambeau predict` wrote it: "
                "name another file with -o, or replace it with --overwrite"
            ) from None
        if not there:
            return None
        if difference := _difference(before, self._record):
            raise SetupError(
                f"{place.target} was begun {difference}: "
                "run the same command to resume, name another file with -o, or start again with --overwrite"
            )
        return before

    def written(self) -> Iterator[WrittenRow]:
        """The rows in the file, in order. Then an incomplete last line is removed."""
        if self._whole:
            yield from self._whole.written(self.place.target)
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
        """Append rows. Raises `SetupError` when the disk is full, or the file is complete."""
        if self._whole:
            raise SetupError(f"{self.place.target} is complete and cannot be added to: start again with --overwrite")
        with _told(self.place.rows):
            self._append(self._lines.encode(rows))

    def finish(self, *, rows: int, errors: int) -> None:
        """Note in the record that all rows are there, and make the file that is made of all of them.

        If this is killed at any point, the next run finds all rows and does it again.
        """
        place = self.place
        if self._whole:
            return
        with _told(place.target):
            os.fsync(self._file.fileno())
            if place.made:
                place.made.write(place.target, place.rows)
            self._write_record(msgspec.structs.replace(self._record, rows=rows, errors=errors))
            if place.made:
                place.rows.unlink()

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        if not self._whole:
            self._file.close()

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def _strange(self, number: int) -> SetupError:
        return SetupError(f"line {number} of {self.place.rows} is not one of ours: start again with --overwrite")

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has no such lock: two runs into one file will spoil it
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
    """The first difference between two runs, as the middle of a sentence; `None` if there is none."""
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
    """Turn an error of the file system into a `SetupError`."""
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"{file} cannot be written ({error.strerror}): fix that, and run the same command to resume"
        ) from error
