"""The files of a model's archive, as data: a zip, a tar (plain or gzip), or a folder of the same layout.

Names lead nowhere but down, links and devices are refused, and nothing unpacks to much more than its own size. The
folder around everything that is in a tar is left out. What the files mean is not known here.
"""

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Protocol, cast

from flambeau.checkpoints import file_magic, zip_archive
from flambeau.checkpoints.report import DOWNLOAD_AGAIN, ScanError, plain

_MOST_FILES = 10_000
_MOST_DEPTH = 32
_PIECE = 2**20
_MOST_HEADERS = 64 * 2**20
_MOST_WORDS = 16 * 2**20
_MEANINGFUL = {"MAR-INF", "code"}


class ArchiveFiles(Protocol):
    """The files of one archive. All methods raise `ScanError` for what is hostile or damaged, and `OSError`."""

    names: tuple[str, ...]
    """Every file, by its path from the archive's own top; no folders."""

    def read(self, name: str, *, limit: int) -> bytes:
        """The contents of a file of at most `limit` bytes."""
        ...

    def unpack(self, folder: Path) -> None:
        """Write every file below a folder, which must be empty."""
        ...


def open_files(path: Path) -> ArchiveFiles | None:
    """The files of a zip, a tar or a folder; `None` for anything else. Raises `ScanError` or `OSError`."""
    if path.is_dir():
        return _FolderFiles(path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        return _ZipFiles(path)
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return _TarFiles(path)
    return None


class _ZipFiles:
    def __init__(self, path: Path) -> None:
        self._path = path
        with self._opened() as archive:
            file_magic.refuse_bomb(archive)
            self.names = tuple(name for name in archive.members if not name.endswith("/"))
        _refuse_many(self.names)

    def read(self, name: str, *, limit: int) -> bytes:
        with self._opened() as archive:
            return archive.read(name, limit=limit)

    def unpack(self, folder: Path) -> None:
        with self._opened() as archive:
            for name in self.names:
                with _new_file(folder, name) as target:
                    archive.copy(name, target)

    @contextmanager
    def _opened(self) -> Iterator[zip_archive.Archive]:
        with self._path.open("rb") as file:
            yield zip_archive.read(file, os.fstat(file.fileno()).st_size)


class _TarFiles:
    """Every use reads the archive from its beginning, as gzip has to be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        names = [_checked(member.name) for member, _ in self._members()]
        _refuse_many(names)
        self._top = _common_top(names)
        self.names = tuple(name[len(self._top) :] for name in names)

    def read(self, name: str, *, limit: int) -> bytes:
        for member, content in self._members():
            if _checked(member.name)[len(self._top) :] == name:
                if member.size > limit:
                    raise ScanError(f"holds a {plain(name)} of {member.size:,} bytes, more than the {limit:,} it could "
                                    "need")  # fmt: skip
                return content.read()
        raise ScanError(f"has no {plain(name)}", DOWNLOAD_AGAIN)

    def unpack(self, folder: Path) -> None:
        for member, content in self._members():
            with _new_file(folder, _checked(member.name)[len(self._top) :]) as target:
                shutil.copyfileobj(content, target, _PIECE)

    def _members(self) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
        most = left = file_magic.most_unpacked(self._path.stat().st_size)
        words = 0
        try:
            with self._opened(most) as file, tarfile.open(fileobj=cast("IO[bytes]", file), mode="r:") as archive:
                for count, member in enumerate(archive):
                    left -= member.size
                    # tarfile keeps them all
                    words += len(member.name) + sum(len(key) + len(text) for key, text in member.pax_headers.items())
                    if left < 0 or words > _MOST_WORDS:
                        raise ScanError(f"would unpack to more than {most:,} bytes: it is a bomb")
                    if count > 2 * _MOST_FILES:
                        raise ScanError(f"holds more than {_MOST_FILES:,} files")
                    if member.isdir():
                        continue
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is None:
                        raise ScanError(f"holds {plain(member.name)} as a link or a device in place of a file")
                    yield member, content
                file.finish()
        except (tarfile.TarError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
            raise ScanError(f"is a damaged archive ({plain(str(error))})", DOWNLOAD_AGAIN) from None

    @contextmanager
    def _opened(self, most: int) -> "Iterator[_Bounded]":
        with self._path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield _Bounded(gzip.GzipFile(fileobj=file) if packed else file, most)


class _Bounded:
    """A file that `tarfile` reads: it reads headers whole, whatever size they declare, and has no limit of its own."""

    def __init__(self, file: "IO[bytes] | gzip.GzipFile", most: int) -> None:
        self._file = file
        self._most = most + _MOST_HEADERS

    def read(self, size: int = -1) -> bytes:
        """At most a piece at once. Raises `ScanError` for more."""
        if not 0 <= size <= _PIECE:
            raise ScanError(f"holds a header of more than {_PIECE:,} bytes: it is a bomb")
        return self._file.read(size)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Raises `ScanError` for a place behind everything that may be there."""
        if position > self._most:
            raise ScanError(f"would unpack to more than {self._most:,} bytes: it is a bomb")
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()

    def finish(self) -> None:
        """Read the rest, behind which gzip has its checksum: `tarfile` stops before it."""
        while self._file.read(_PIECE):
            self.seek(self.tell())


class _FolderFiles:
    """A folder as it lies there. A link in it is refused: it may lead anywhere."""

    def __init__(self, path: Path) -> None:
        self._path = path
        names: list[str] = []
        for root, folders, files in os.walk(path):
            folders[:] = sorted(each for each in folders if each != "__pycache__")
            for each in (*folders, *files):
                place = Path(root, each)
                if place.is_symlink() or not (place.is_dir() or place.is_file()):
                    raise ScanError(f"holds {plain(each)} as a link or a device in place of a file")
            names += [Path(root, each).relative_to(path).as_posix() for each in sorted(files)]
            _refuse_many(names)
        self.names = tuple(names)

    def read(self, name: str, *, limit: int) -> bytes:
        with (self._path / name).open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ScanError(f"holds a {plain(name)} of more than the {limit:,} bytes that it could need")
        return data

    def unpack(self, folder: Path) -> None:
        for name in self.names:
            with (self._path / name).open("rb") as content, _new_file(folder, name) as target:
                shutil.copyfileobj(content, target, _PIECE)


def _refuse_many(names: "tuple[str, ...] | list[str]") -> None:
    if len(names) > _MOST_FILES:
        raise ScanError(f"holds more than {_MOST_FILES:,} files")


def _checked(name: str) -> str:
    """The name of a tar's member, without a dot before it; it leads nowhere but down."""
    path = PurePosixPath(name.removeprefix("./"))
    if path.is_absolute() or not path.parts or len(path.parts) > _MOST_DEPTH or any(
        part == ".." or "\0" in part or "\\" in part for part in path.parts
    ):  # fmt: skip
        raise ScanError(f"holds a member with a name that leads elsewhere: {plain(repr(name))}")
    return str(path)


def _common_top(names: list[str]) -> str:
    """The folder around everything, with its slash; empty if there is none, or if it is one that means something."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or tops & _MEANINGFUL or not all("/" in name for name in names):
        return ""
    return f"{tops.pop()}/"


def _new_file(folder: Path, name: str) -> BinaryIO:
    target = folder.joinpath(*PurePosixPath(name).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        return target.open("xb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise ScanError(f"holds {plain(name)} twice, or as a folder and a file at once") from None
