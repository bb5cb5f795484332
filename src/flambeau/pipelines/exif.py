"""An image's orientation, from its EXIF, or from its XMP if EXIF has none.

It is not read by Pillow, which copies every value of the table: the entries may all point at the same megabytes.
"""

import re
import struct
import zlib

_ORIENTATION = 0x0112
_SHORT = 3
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_LONGEST = 1 << 18  # bytes of metadata that are read


def orientation(exif: bytes | None, xmp: bytes | None = None) -> int | None:
    """The orientation, 1 to 8 if it is valid (CIPA DC-008, 4.6.4); `None` if the metadata has none.

    `exif` is a TIFF structure, with or without `Exif\\0\\0` before it.
    """
    found = _from_exif(exif[:_LONGEST]) if exif else None
    if found is None and xmp and (match := _XMP_ORIENTATION.search(xmp[:_LONGEST])):
        return int(match[1])
    return found


def _from_exif(exif: bytes) -> int | None:
    """The entry of the first table. A damaged table is ignored: the image may still be good."""
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
    """EXIF as ImageMagick writes it into a PNG: an empty line, name, length, and lines of hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return None


def inflated(packed: bytes) -> bytes:
    """The unpacked metadata, up to the length that is read; empty if it is damaged."""
    try:
        return zlib.decompressobj().decompress(packed, _LONGEST)
    except zlib.error:
        return b""
