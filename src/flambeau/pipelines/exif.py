"""How a picture lies, from the metadata beside it: EXIF, or XMP where EXIF does not say.

Read here and not by Pillow, which copies every value of the table: its entries may all point at the same megabytes.
"""

import re
import struct
import zlib

_ORIENTATION = 0x0112
_SHORT = 3
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_LONGEST = 1 << 18  # bytes of metadata that are looked at


def orientation(exif: bytes | None, xmp: bytes | None = None) -> int | None:
    """The orientation, 1 to 8 where it is a lawful one (CIPA DC-008, 4.6.4); `None` where nothing tells it.

    `exif` is a TIFF structure, with or without `Exif\\0\\0` before it.
    """
    found = _from_exif(exif[:_LONGEST]) if exif else None
    if found is None and xmp and (match := _XMP_ORIENTATION.search(xmp[:_LONGEST])):
        return int(match[1])
    return found


def _from_exif(exif: bytes) -> int | None:
    """The entry of the first table; a damaged one says nothing, for a good picture with it is still a good picture."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(order + "L", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHLH", tiff, entry)
            if tag == _ORIENTATION:
                return int(value) if kind == _SHORT else None
    except struct.error:
        pass
    return None


def from_text(text: bytes) -> bytes | None:
    """EXIF as ImageMagick writes it into a PNG: `name`, `length` and hexadecimal digits, a line each."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return None


def inflated(packed: bytes) -> bytes:
    """The beginning of what is packed, as far as metadata is looked at; nothing where it is damaged."""
    try:
        return zlib.decompressobj().decompress(packed, _LONGEST)
    except zlib.error:
        return b""
