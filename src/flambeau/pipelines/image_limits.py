"""Limits on image files: the decoder gets the pixels without the metadata, and only files it can decode in time.

Settings bound pixels and bytes; this module bounds scans, segments, chunks, blocks and commands. Otherwise a file of a
few hundred kilobytes could keep a decoder busy for half a minute. The yardstick is an ordinary image of the most pixels
allowed: no file may cost a decoder much more. Metadata is removed, so that it costs no time and cannot make an image
unreadable; the orientation is read from it first.

Only the file's structure is read here, and nothing is decoded. Damaged files are left to the decoder to report.
"""

import itertools
import re
import struct
from dataclasses import dataclass

from flambeau.errors import InvalidInput
from flambeau.pipelines import exif

_MOST_PARTS = 10_000  # JPEG segments or WebP chunks; a photograph has dozens
_MOST_PNG_CHUNKS = 100_000  # or GIF blocks; some writers split the pixels into chunks of a row or less
_SCANS_ALWAYS, _SCANS_EVER = 30, 1_000  # JPEG scans: allowed at any size, and never more; progressive files have ten
_SCANNED_PIXELS = 1_500_000_000  # scans times pixels
_RUN_LENGTH_PIXELS, _RUN_LENGTH_BYTES = 4_000_000, 4 << 20  # of a BMP, whose runs are decoded in Python


@dataclass(frozen=True, slots=True)
class Trimmed:
    """A file without its metadata.

    `orientation` is EXIF's; `bits` is how many bits of a grey sample are significant, as the file declares.
    """

    data: bytes
    orientation: int | None = None
    bits: int | None = None


def trim(data: bytes) -> Trimmed:
    """The part of an image file that the decoder gets. Raises `InvalidInput` if decoding would take too long."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Trimmed(_gif(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Trimmed(data, _webp_orientation(data))
    if data.startswith(b"BM"):
        _check_bmp(data)
    return Trimmed(data)


def _too_dear(what: str) -> InvalidInput:
    """`what` names the format, and what the file has too much of."""
    return InvalidInput(f"{what} takes too long to decode: save the image again and send that", code="image_too_large")


# -- JPEG (ITU-T T.81, annex B) ----------------------------------------------------------------------------------

_MARKER = re.compile(rb"\xff[^\x00\xff]")
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # restart markers are part of a scan
_SCAN = re.compile(rb"\xff\xda")  # which are no pixels: there, 255 is always followed by a zero
_SOS, _EOI = 0xDA, 0xD9
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a segment
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_METADATA = frozenset((*range(0xE0, 0xF0), 0xFE))


def _jpeg(data: bytes) -> Trimmed:
    kept: list[bytes] = [b"\xff\xd8"]
    exif_data, xmp = None, None
    size = (0, 0)
    at, parts = 2, 0
    while (marker := _MARKER.search(data, at)) is not None:
        code, begin, end = data[marker.start() + 1], marker.start(), marker.end()
        if code in (_SOS, _EOI):
            kept.append(data[begin:])
            break
        if code not in _ALONE:
            end += int.from_bytes(data[end : end + 2])
        if end > len(data) or end < begin + (2 if code in _ALONE else 4):  # cut short, or no length at all
            kept.append(data[begin:])
            break
        parts += 1
        if parts > _MOST_PARTS:
            raise _too_dear(f"a JPEG of more than {_MOST_PARTS} segments")
        segment = data[begin:end]
        if code in _FRAMES and len(segment) >= 9:
            size = (int.from_bytes(segment[7:9]), int.from_bytes(segment[5:7]))
        if code == 0xE1 and exif_data is None and segment.startswith(b"Exif\0\0", 4):
            exif_data = segment[10:]
        elif code == 0xE1 and xmp is None and segment.startswith(b"http://ns.adobe.com/xap/1.0/\0", 4):
            xmp = segment[33:]
        # JFIF's and Adobe's segments define the colour space
        colours = (code == 0xE0 and segment.startswith(b"JFIF", 4)) or (
            code == 0xEE and segment.startswith(b"Adobe", 4)
        )
        if code not in _METADATA or colours:
            kept.append(segment)
        at = end
    else:
        kept.append(data[at:])
    _check_scans(kept[-1], *size)
    return Trimmed(b"".join(kept), exif.orientation(exif_data, xmp))


def _check_scans(data: bytes, width: int, height: int) -> None:
    """Bound the scans: each one costs the decoder a pass over all pixels, however few bytes it has."""
    most = max(_SCANS_ALWAYS, min(_SCANS_EVER, _SCANNED_PIXELS // max(1, width * height)))
    if next(itertools.islice(_SCAN.finditer(data), most, None), None) is None:
        return
    at = scans = parts = 0
    while (marker := _MARKER_IN_SCAN.search(data, at)) is not None and data[marker.start() + 1] != _EOI:
        scans += data[marker.start() + 1] == _SOS
        parts += 1
        if scans > most:
            raise _too_dear(f"a JPEG of {width} × {height} pixels in more than {most} scans")
        if parts > _MOST_PARTS:
            raise _too_dear(f"a JPEG of more than {_MOST_PARTS} segments")
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])


# -- PNG (W3C, third edition) ------------------------------------------------------------------------------------

_RAW_PROFILE = b"Raw profile type exif"
_NEEDED = frozenset((b"tRNS",))  # ancillary chunks that are kept


def _png(data: bytes) -> Trimmed:
    """Keep the critical chunks only. Without its chunks an animation is reduced to its default image, the first."""
    kept = [data[:8]]
    found: dict[bytes, bytes] = {}
    bits = None
    at, parts = 8, 0
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if end > len(data):
            break
        parts += 1
        if parts > _MOST_PNG_CHUNKS:
            raise _too_dear(f"a PNG of more than {_MOST_PNG_CHUNKS} chunks")
        if kind[0] & 0x20 == 0 or kind in _NEEDED:
            kept.append(data[at:end])
        elif kind == b"sBIT":
            bits = data[at + 8]
        elif kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
            _keep_metadata(found, kind, data[at + 8 : end - 4])
        at = end
        if kind == b"IEND":
            break
    else:
        end = at
    if at != end:
        kept.append(data[at:])  # cut short: the decoder says so
    exif_data = found.get(b"eXIf") or exif.from_text(found.get(_RAW_PROFILE, b""))
    return Trimmed(b"".join(kept), exif.orientation(exif_data, found.get(b"XMP")), bits)


def _keep_metadata(found: dict[bytes, bytes], kind: bytes, contents: bytes) -> None:
    """Keep the first chunk of each kind that may hold the orientation."""
    if kind == b"eXIf":
        found.setdefault(kind, contents)
    elif kind == b"iTXt" and contents.startswith(b"XML:com.adobe.xmp\0"):
        packed, rest = contents[18:19] == b"\1", contents[20:].split(b"\0", 2)
        if b"XMP" not in found and len(rest) == 3:
            found[b"XMP"] = exif.inflated(rest[2]) if packed else rest[2]
    elif kind != b"iTXt" and _RAW_PROFILE not in found and contents.startswith(_RAW_PROFILE + b"\0"):
        text = contents[len(_RAW_PROFILE) + 1 :]
        found[_RAW_PROFILE] = exif.inflated(text[1:]) if kind == b"zTXt" else text


# -- GIF (CompuServe, 89a) ---------------------------------------------------------------------------------------

_BLOCK = re.compile(rb"[!,;]")
_GRAPHIC_CONTROL = 0xF9


def _gif(data: bytes) -> bytes:
    """Keep the screen, the last graphic control before the first frame, and the rest; Pillow decodes one frame only."""
    at = 13 + ((3 << ((data[10] & 7) + 1)) if len(data) > 10 and data[10] & 0x80 else 0)
    screen, control = data[:at], b""
    parts = 0
    while (block := _BLOCK.search(data, at)) is not None and block[0] == b"!":
        begin, at = block.start(), block.start() + 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
            parts += 1
        at, parts = at + 1, parts + 1
        if parts > _MOST_PNG_CHUNKS:
            raise _too_dear(f"a GIF of more than {_MOST_PNG_CHUNKS} blocks before its picture")
        if data[begin + 1 : begin + 2] == bytes((_GRAPHIC_CONTROL,)):
            control = data[begin:at]
    return screen + control + (data[block.start() :] if block is not None else b"")


# -- WebP and BMP ------------------------------------------------------------------------------------------------


def _webp_orientation(data: bytes) -> int | None:
    """From the chunks after the image. An animation has a chunk for each frame before them."""
    found: dict[bytes, bytes] = {}
    at, parts = 12, 0
    while at + 8 <= len(data) and parts <= _MOST_PARTS:
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind in (b"EXIF", b"XMP "):
            found.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 8 + length + (length & 1)
        parts += 1
    return exif.orientation(found.get(b"EXIF"), found.get(b"XMP "))


def _check_bmp(data: bytes) -> None:
    """Bound run-length coded files: Pillow reads their commands one by one in Python, and pads rows pixel by pixel."""
    if len(data) < 34 or int.from_bytes(data[14:18], "little") < 40:
        return
    width, height, _, _, compression = struct.unpack_from("<llHHL", data, 18)
    if compression in (1, 2) and (abs(width * height) > _RUN_LENGTH_PIXELS or len(data) > _RUN_LENGTH_BYTES):
        raise _too_dear(
            f"a run-length coded BMP of more than {_RUN_LENGTH_PIXELS} pixels or {_RUN_LENGTH_BYTES} bytes"
            f" (this has {width} × {abs(height)} and {len(data)})"
        )
