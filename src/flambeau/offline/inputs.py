"""Turns the command line's arguments into entries: files, folders, patterns, tables, and lists of them.

The order is the user's, and by name within a folder or a pattern: the same arguments give the same entries, so that a
later run can resume. Only the names in the folders on the way to a file are kept in memory, no contents. It decides by
suffix alone, and opens only tables.
"""

import glob
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from flambeau.errors import SetupError
from flambeau.offline import tables
from flambeau.offline.entries import FILES, IMAGES, SOUNDS, TABLES, InputEntry, Wanted, WantedKind, bad_input, shown

LIST = "-"
"""The argument for a list of paths on standard input."""


def may_have(arguments: Sequence[str], suffixes: Collection[str], kind: WantedKind) -> bool:
    """Whether there may be a table with one of these suffixes among the arguments: for images and sounds, folders give
    none."""
    return any(
        argument == LIST
        or Path(argument).suffix.lower() in suffixes
        or (kind not in FILES and (glob.has_magic(argument) or os.path.isdir(argument)))
        for argument in arguments
    )


class Inputs:
    """The entries of the command line's arguments. They can be iterated again, except those from standard input."""

    def __init__(
        self,
        arguments: Sequence[str],
        wanted: Wanted,
        *,
        own: frozenset[Path] = frozenset(),
        listed: Callable[[], BinaryIO],
    ) -> None:
        """`own` are the resolved paths of the files that we write: folders and patterns leave them out. `listed` opens
        the list on standard input.
        """
        self._arguments = arguments
        self._wanted = wanted
        self._own = own
        self._own_names = {path.name for path in own}
        self._listed = listed
        self.passed_over: Counter[str] = Counter()
        """Files in folders that were skipped, counted by suffix; complete after an iteration."""

    def __iter__(self) -> Iterator[InputEntry]:
        self.passed_over.clear()
        for path in self._paths():
            if isinstance(path, InputEntry):
                yield path
            elif tables.is_table(path):
                yield from tables.entries(path, self._wanted)
            else:
                yield self._file(path)

    def count(self) -> int | None:
        """The number of entries, or `None` if there is a list on standard input.

        Raises `SetupError` for a pattern that matches nothing, and for a table without the wanted columns.
        """
        if LIST in self._arguments:
            return None
        return sum(
            1 if isinstance(path, InputEntry) or not tables.is_table(path) else tables.count(path, self._wanted)
            for path in self._paths()
        )

    def tables(self) -> Iterator[Path]:
        """The tables among the arguments."""
        return (Path(each) for each in self._arguments if each != LIST and tables.is_table(Path(each)))

    def _file(self, path: Path) -> InputEntry:
        if self._wanted.kind in ("tensor", "text"):
            what = "numbers" if self._wanted.kind == "tensor" else "texts"
            error = bad_input(f"this model takes {what}: give it a .csv or a .jsonl file", "unsupported_media_type")
            return InputEntry(shown(path), error)
        return InputEntry(shown(path), path)

    def _paths(self) -> Iterator[Path | InputEntry]:
        """The paths of files, with an error in place of a folder that cannot be read."""
        for argument in self._arguments:
            if argument == LIST:
                for line in self._listed():
                    if text := line.rstrip(b"\r\n"):
                        yield from self._named(Path(os.fsdecode(text)))
            elif glob.has_magic(argument) and not os.path.lexists(argument):
                yield from self._matching(argument)
            else:
                yield from self._named(Path(argument))

    def _named(self, path: Path) -> Iterator[Path | InputEntry]:
        return self._walk(path) if path.is_dir() else iter((path,))

    def _matching(self, pattern: str) -> Iterator[Path]:
        """The files that match: all if the pattern ends in a suffix, else those that would be taken from a folder."""
        suffix = Path(pattern).suffix
        chosen = bool(suffix) and not glob.has_magic(suffix)
        found = sorted(path for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path))
        if not found:
            raise SetupError(
                f"no file matches {pattern}: correct the pattern, and quote it so that the shell leaves it alone"
            )
        return (Path(path) for path in found if (self._is_foreign(path) if chosen else self._takes(path)))

    def _walk(self, folder: Path) -> Iterator[Path | InputEntry]:
        """The files below a folder, depth first. Hidden files and links to folders are skipped."""
        levels = [iter([f"{folder}/"])]
        while levels:
            path = next(levels[-1], None)
            if path is None:
                levels.pop()
            elif not path.endswith("/"):
                yield Path(path)
            else:
                try:
                    names = sorted(self._names(path))
                except OSError as error:
                    yield InputEntry(
                        shown(path), bad_input(f"the folder cannot be read: {error.strerror}", "missing_file")
                    )
                else:
                    levels.append(map(path.__add__, names))

    def _names(self, folder: str) -> Iterator[str]:
        """The names to take from a folder: files, and folders with a slash at the end."""
        with os.scandir(folder) as found:
            for each in found:
                if each.name.startswith("."):
                    self.passed_over["hidden"] += 1
                elif each.is_dir(follow_symlinks=False):
                    yield f"{each.name}/"
                elif each.is_symlink() and each.is_dir():
                    self.passed_over["links to folders"] += 1
                elif self._takes(each.path):
                    yield each.name

    def _takes(self, path: str) -> bool:
        """Whether a file from a folder or a pattern is an input, by its suffix. Counts it as skipped if not."""
        suffix = os.path.splitext(path)[1].lower()
        taken = {"image": IMAGES, "audio": SOUNDS, "text": TABLES, "tensor": TABLES}.get(self._wanted.kind)
        if taken is not None and suffix not in taken:
            self.passed_over[suffix or "without suffix"] += 1
            return False
        return self._is_foreign(path)

    def _is_foreign(self, path: str) -> bool:
        """Whether a file is none of those that we write."""
        return os.path.basename(path) not in self._own_names or Path(path).resolve() not in self._own
