"""Pictures that are small to send and dear to decode: A2. Each is a valid file, or one that a decoder bears with."""

import struct
import zlib
from io import BytesIO

from PIL import Image

_SOS, _EOI = b"\xff\xda", b"\xff\xd9"


def repeated_scans(side: int, scans: int, *, progressive: bool = True) -> bytes:
    """A JPEG of one colour, `side` pixels wide and high, whose last scan stands there `scans` times."""
    file = BytesIO()
    Image.new("RGB", (side, side), (90, 120, 150)).save(file, "JPEG", progressive=progressive)
    data = file.getvalue()
    start = data.rindex(_SOS)
    return data[:start] + data[start:-2] * scans + _EOI


def starved_scans(side: int, scans: int) -> bytes:
    """A baseline JPEG with one component a scan; all scans but the first are headers without any data."""
    file = BytesIO()
    Image.new("RGB", (side, side), (90, 120, 150)).save(file, "JPEG")
    data = file.getvalue()
    start = data.rindex(_SOS)
    tables = data.index(b"\xff\xc0")
    components = [data[tables + 10 + 3 * each] for each in range(3)]
    headers = [struct.pack(">2sHBBBBBB", _SOS, 8, 1, each, 0, 0, 63, 0) for each in components]
    return data[:start] + b"".join(headers[each % 3] for each in range(scans)) + _EOI


def many_segments(segment: bytes, size: int) -> bytes:
    """A small JPEG with one and the same segment before its picture, over and over, until it has `size` bytes."""
    data = small("JPEG")
    return data[:2] + segment * ((size - len(data)) // len(segment)) + data[2:]


def many_chunks(chunk: bytes, size: int, *, after: bool = False) -> bytes:
    """A small PNG with one and the same chunk before (or after) its picture, until it has `size` bytes."""
    data = small("PNG")
    place = len(data) - 12 if after else 33
    return data[:place] + chunk * ((size - len(data)) // len(chunk)) + data[place:]


def exif_bomb(entries: int, each: int) -> bytes:
    """EXIF of `each` bytes and a bit, whose entries all say that they are those bytes."""
    table = b"".join(struct.pack(">HHLL", 0x9000 + number, 7, each, 0x100) for number in range(entries))
    body = b"MM\0*" + struct.pack(">LH", 8, entries) + table + bytes(4)
    return body + bytes(max(0, 0x100 + each - len(body)))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def small(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """An honest picture."""
    file = BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(file, kind)
    return file.getvalue()


def gif_blocks(block: bytes, size: int) -> bytes:
    """A small GIF with these bytes before its picture, over and over."""
    data = small("GIF")
    place = 13 + (3 << ((data[10] & 7) + 1))
    return data[:place] + block * (size // len(block)) + data[place:]


def rle_bmp(width: int, height: int, commands: bytes) -> bytes:
    """A BMP of eight bits whose pixels are run-length commands."""
    palette = b"".join(bytes((each, 255 - each, each, 0)) for each in range(256))
    offset = 54 + len(palette)
    head = b"BM" + struct.pack("<LHHL", offset + len(commands), 0, 0, offset)
    info = struct.pack("<LllHHLLllLL", 40, width, height, 1, 8, 1, len(commands), 2835, 2835, 256, 256)
    return head + info + palette + commands
