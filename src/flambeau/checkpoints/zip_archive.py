"""Check the structure of zip archives: the directory at the end, each member's header, and that the two agree.

This is stricter than any zip reader, because readers differ in how they read an archive that contradicts itself.
Checking unpacks nothing, and a declared size is compared with the file's size before anything is allocated.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from flambeau.checkpoints.report import DOWNLOAD_AGAIN, ScanError, plain

_END, _END_64, _END_64_PLACE = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL = b"PK\x01\x02", b"PK\x03\x04"
_CENTRAL_FIELDS = struct.Struct("<4s4xHH4xIIIHHHH2xII")
_LOCAL_FIELDS = struct.Struct("<4s2xHH4xIIIHH")
_FILLED_IN_64 = 0xFFFFFFFF

_MOST_MEMBERS = 65_536
_LARGEST_DIRECTORY = 32 * 2**20
_LONGEST_DESCRIPTOR = 24
_MOST_EXTRA_FIELDS = 16
_FLAG_DESCRIPTOR, _FLAG_UTF8 = 0x8, 0x800
_COMPRESSION_HINTS = 0x6
_SAFE_NAME = re.compile(r"[^\x00-\x1f\x7f\\]{1,400}")
_DOS_LABEL, _DOS_FOLDER = 0x8, 0x10
_UNIX_KINDS = (0, 0o100000, 0o040000)  # unspecified, a file, a folder

STORED, DEFLATED = 0, 8

_PIECE = 2**20


@dataclass(frozen=True, slots=True)
class Member:
    """A member: the offset of its header, its checksum, its packed and unpacked sizes, and the offset of its data."""

    name: str
    header: int
    method: int
    flags: int
    crc: int
    packed: int
    size: int
    data: int = 0


class Archive:
    """An archive whose structure has been checked. `members` are in the order of the directory."""

    def __init__(self, file: BinaryIO, members: dict[str, Member]) -> None:
        self.members = members
        self._file = file

    def read(self, name: str, *, limit: int) -> bytes:
        """The contents of a member of at most `limit` bytes. Raises `ScanError`."""
        member = self.members[name]
        if member.size > limit or member.packed > limit:
            raise ScanError(f"holds a {plain(name)} of {member.size:,} bytes, more than the {limit:,} it could need")
        self._file.seek(member.data)
        data = self._file.read(member.packed)
        if member.method == DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
            except zlib.error:
                raise ScanError(f"holds a {plain(name)} that cannot be unpacked", DOWNLOAD_AGAIN) from None
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise _unlike_its_checksum(member)
        return data

    def copy(self, name: str, target: BinaryIO) -> None:
        """Write the contents of a member, however large, into a file. Raises `ScanError` for what does not fit."""
        for piece in self._pieces(self.members[name]):
            target.write(piece)

    def verify(self) -> None:
        """Read all members, and compare them with their checksums. Raises `ScanError` for one that is damaged.

        torch compares none when it loads. A member whose checksum is 0 has none: torch leaves the place of a storage
        empty under `torch.serialization.skip_data`, for a program to fill in.
        """
        for member in self.members.values():
            if member.crc:
                for _ in self._pieces(member):
                    pass

    def _pieces(self, member: Member) -> Iterator[bytes]:
        """The contents of a member, which are compared with its size and its checksum. Raises `ScanError`."""
        self._file.seek(member.data)
        unpacking = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == DEFLATED else None
        left, written, crc = member.packed, 0, 0
        damaged = ScanError(
            f"holds a {plain(member.name)} that is damaged: its contents do not fit its size and checksum",
            DOWNLOAD_AGAIN,
        )
        while left or (unpacking is not None and unpacking.unconsumed_tail):
            packed = unpacking.unconsumed_tail if unpacking is not None and unpacking.unconsumed_tail else b""
            if not packed:
                packed = self._file.read(min(left, _PIECE))
                left -= len(packed)
            try:
                piece = packed if unpacking is None else unpacking.decompress(packed, _PIECE)
            except zlib.error:
                raise damaged from None
            written += len(piece)
            if not packed or written > member.size:
                raise damaged
            crc = zlib.crc32(piece, crc)
            yield piece
        if written != member.size or crc != member.crc or (unpacking is not None and not unpacking.eof):
            raise damaged


def _unlike_its_checksum(member: Member) -> ScanError:
    if not member.crc:
        return ScanError(
            f"has no checksum (CRC) of its {plain(member.name)}: a program left checksums out",
            "load it where it was made, and save it again after torch.serialization.set_crc32_options(True)",
        )
    return ScanError(
        f"has a checksum (CRC) that does not fit its {plain(member.name)}: it was damaged on its way, or changed by "
        "hand",
        DOWNLOAD_AGAIN,
    )


def read(file: BinaryIO, size: int) -> Archive:
    """Open the archive in a file of `size` bytes. Raises `ScanError` for one that is damaged or contradicts itself."""
    directory, start, count = _directory(file, size)
    members: dict[str, Member] = {}
    known: set[str] = set()
    position = 0
    while position < len(directory) and len(members) <= count:
        member, position = _entry(directory, position, limit=start)
        if member.name.casefold() in known:  # readers differ in which of the two they use, and some ignore case
            raise ScanError(f"holds two members called {plain(member.name)}, so that readers differ in which they see")
        known.add(member.name.casefold())
        members[member.name] = member
    if len(members) != count:
        raise ScanError(f"declares {count:,} members, but lists more or fewer")
    return Archive(file, _against_headers(file, members, end=start))


def _directory(file: BinaryIO, size: int) -> tuple[bytes, int, int]:
    """The bytes of the central directory, where it begins, and how many members it lists."""
    file.seek(max(0, size - 22))
    end = file.read(22)
    if len(end) < 22 or not end.startswith(_END):
        raise ScanError("begins as a zip archive and has no directory at its end: it is cut short", DOWNLOAD_AGAIN)
    numbers = struct.unpack("<4x4H2IH", end)
    stop, comment = size - 22, numbers[6]
    file.seek(max(0, stop - 76))
    wide = file.read(76)
    if wide.startswith(_END_64) and wide[56:60] == _END_64_PLACE:  # torch always writes the 64-bit end
        stop -= 76
        narrow, numbers = numbers[:6], struct.unpack_from("<2I4Q", wide, 16)
        sizes = struct.unpack_from("<Q", wide, 4) + struct.unpack_from("<IQI", wide, 60)
        if sizes != (44, 0, stop, 1) or not all(map(_agree, narrow, numbers)):
            raise ScanError("is a zip archive whose two directories contradict each other")
    elif any(map(_is_filled_in, numbers[:6])):
        raise ScanError("is a damaged zip archive: it lacks the 64-bit end of its directory", DOWNLOAD_AGAIN)
    disk, start_disk, here, count, length, start = numbers[:6]
    if comment or disk or start_disk or here != count:
        raise ScanError("is a zip archive in several parts or with a comment, which torch.save never writes")
    if count > _MOST_MEMBERS or length > _LARGEST_DIRECTORY:
        raise ScanError(f"declares {count:,} members, more than the {_MOST_MEMBERS:,} that a model could need")
    if start + length != stop or length < 46 * count:
        raise ScanError("is a zip archive whose directory is not where its end says", DOWNLOAD_AGAIN)
    file.seek(start)
    directory = file.read(length)
    if len(directory) != length:
        raise ScanError("is a zip archive that is cut short", DOWNLOAD_AGAIN)
    return directory, start, count


def _is_filled_in(number: int) -> bool:
    return number in (0xFFFF, _FILLED_IN_64)


def _agree(narrow: int, wide: int) -> bool:
    return narrow == wide or _is_filled_in(narrow)


def _entry(directory: bytes, position: int, *, limit: int) -> tuple[Member, int]:
    """One member of the directory, and where the next one begins. The member must end below `limit`."""
    if position + 46 > len(directory):
        raise ScanError("is a zip archive with a damaged directory", DOWNLOAD_AGAIN)
    (magic, flags, method, crc, packed, unpacked, name_size, extra_size, comment_size, disk, attributes, header) = (
        _CENTRAL_FIELDS.unpack_from(directory, position)
    )
    extra = position + 46 + name_size
    end = extra + extra_size + comment_size
    if magic != _CENTRAL or disk or end > len(directory):
        raise ScanError("is a zip archive with a damaged directory", DOWNLOAD_AGAIN)
    name = _name(directory[position + 46 : extra])
    if _FILLED_IN_64 in (packed, unpacked, header):
        packed, unpacked, header = _wide(directory[extra : extra + extra_size], packed, unpacked, header)
    if flags & ~(_FLAG_DESCRIPTOR | _FLAG_UTF8 | _COMPRESSION_HINTS):
        raise ScanError(f"marks {plain(name)} as encrypted or otherwise special (zip flags {flags:#06x})")
    if method not in (STORED, DEFLATED):
        raise ScanError(f"packs {plain(name)} by method {method}, which torch.save never uses")
    if (attributes >> 16) & 0o170000 not in _UNIX_KINDS or attributes & _DOS_LABEL:
        raise ScanError(f"holds {plain(name)} as a link or a device in place of a file")
    if (name.endswith("/") and unpacked) or (attributes & _DOS_FOLDER and not name.endswith("/")):
        raise ScanError(f"holds {plain(name)} as a folder and a file at once")
    if header + 30 + packed > limit:
        raise ScanError(f"declares {packed:,} bytes for {plain(name)}, more than the file has")
    if method == STORED and packed != unpacked:
        raise ScanError(f"declares two sizes for {plain(name)}, which is not compressed")
    return Member(name, header, method, flags, crc, packed, unpacked), end


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ScanError(f"holds a member whose name is not text: {plain(repr(raw))}") from None
    parts = name.removesuffix("/").split("/")
    if not _SAFE_NAME.fullmatch(name) or any(part in ("", ".", "..") for part in parts) or ":" in "".join(parts[1:]):
        raise ScanError(f"holds a member with a name that leads elsewhere: {plain(repr(name))}")
    return name


def _wide(extra: bytes, packed: int, unpacked: int, header: int) -> tuple[int, int, int]:
    """The sizes and offset, with filler values replaced by their 64-bit ones (zip64, extra field 1)."""
    position = 0
    for _ in range(_MOST_EXTRA_FIELDS):
        if position + 4 > len(extra):
            break
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1 and position + 4 + length <= len(extra) and length % 8 in (0, 4):
            values = iter(struct.unpack_from(f"<{length // 8}Q", extra, position + 4))
            unpacked = next(values, unpacked) if unpacked == _FILLED_IN_64 else unpacked
            packed = next(values, packed) if packed == _FILLED_IN_64 else packed
            header = next(values, header) if header == _FILLED_IN_64 else header
            break
        position += 4 + length
    return packed, unpacked, header


def _against_headers(file: BinaryIO, members: dict[str, Member], *, end: int) -> dict[str, Member]:
    """The members with the offsets of their data, after checking each against its own header and its neighbours."""
    found: dict[str, Member] = {}
    expected = 0
    for member in sorted(members.values(), key=lambda member: member.header):
        if member.header < expected:
            raise ScanError(f"holds members that overlap, {plain(member.name)} among them: a small file that grows")
        if member.header - expected > (_LONGEST_DESCRIPTOR if expected else 0):
            raise ScanError(f"hides {member.header - expected:,} bytes before its member {plain(member.name)}")
        file.seek(member.header)
        head = file.read(30 + 4 * 2**10)
        if len(head) < 30:
            raise ScanError("is a zip archive that is cut short", DOWNLOAD_AGAIN)
        magic, flags, method, crc, packed, size, name_size, extra_size = _LOCAL_FIELDS.unpack_from(head)
        name = head[30 : 30 + name_size]
        said = (flags, method, name) == (member.flags, member.method, member.name.encode())
        if flags & _FLAG_DESCRIPTOR and (crc, packed, size) == (0, 0, 0):
            pass  # sizes and checksum follow the data
        elif _FILLED_IN_64 not in (packed, size):
            said = said and (crc, packed, size) == (member.crc, member.packed, member.size)
        if magic != _LOCAL or not said:
            raise ScanError(f"says one thing of {plain(member.name)} in its directory and another in its header")
        data = member.header + 30 + name_size + extra_size
        expected = data + member.packed
        if expected > end:
            raise ScanError(f"declares {member.packed:,} bytes for {plain(member.name)}, more than the file has")
        found[member.name] = Member(
            member.name, member.header, method, flags, member.crc, member.packed, member.size, data
        )
    if end - expected > _LONGEST_DESCRIPTOR:
        raise ScanError(f"hides {end - expected:,} bytes before its directory")
    return {name: found[name] for name in members}
