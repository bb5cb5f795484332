"""PNG files from arrays, and back from those files, with zlib alone: fronts have no imaging library.

Only what answers need: one of four kinds of pixels, no interlacing. `read` takes files that were made here, and no
others; it is for bytes from another process, so that it checks them before it unpacks anything.
"""

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from flambeau.answers import runs
from flambeau.answers.label_maps import Spans

PNG = "image/png"
"""The media type."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR, _PALETTE = 0, 2, 3  # colour types (W3C PNG, third edition, 11.2.1)
_UP = 2  # the filter that takes the row above off: photographs become a third smaller


def write(
    pixels: npt.NDArray[Any],
    *,
    palette: npt.NDArray[np.uint8] | None = None,
    clear: int | None = None,
    smooth: bool = False,
) -> bytes:
    """The file of an image.

    `pixels`: uint8 or uint16 of shape (height, width), grey, or (height, width, 3), colours. With a `palette`,
    uint8 (at most 256, 3), the pixels are numbers of its colours, and that numbered `clear` is transparent. `smooth`:
    neighbours are alike but not equal, as in photographs.
    """
    height, width = pixels.shape[:2]
    kind = _PALETTE if palette is not None else _GREY if pixels.ndim == 2 else _COLOUR
    samples = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder(">"))
    rows = samples.reshape(height, -1).view(np.uint8)
    lines = np.empty((height, 1 + rows.shape[1]), np.uint8)
    lines[:, 0] = _UP if smooth else 0
    lines[:, 1:] = rows
    if smooth:
        lines[1:, 1:] -= rows[:-1]
    parts = [_header(width, height, 8 * pixels.dtype.itemsize, kind)]
    if palette is not None:
        parts.append(_chunk(b"PLTE", palette.tobytes()))
    if clear is not None:
        parts.append(_chunk(b"tRNS", bytes([255] * clear + [0])))
    return _file(*parts, data=runs.packed(lines.ravel()))


def mask(spans: Spans, size: tuple[int, int]) -> bytes:
    """The file of a mask of `size` (height, width), grey: 255 in its spans along the rows, which end where a row does.

    Nothing as large as the image is made for it: of a hundred masks of twelve megapixels, most is empty.
    """
    height, width = size
    edges = np.empty(2 * len(spans.begins) + 2, np.int64)
    edges[0], edges[-1] = 0, height * (width + 1)
    edges[1:-1:2] = spans.begins + spans.begins // width + 1  # a row begins with the number of its filter, 0
    edges[2:-1:2] = spans.ends + (spans.ends - 1) // width + 1
    lengths = np.diff(edges)
    values = np.zeros(len(lengths), np.uint8)
    values[1::2] = 255
    last = len(lengths) if lengths[-1] else len(lengths) - 1  # the mask may end where the image does
    return _file(_header(width, height, 8, _GREY), data=runs.packed_runs(values[:last], lengths[:last]))


def size_of(file: bytes) -> tuple[int, int]:
    """Width and height of an image that `write` made. Raises `ValueError` for anything that does not begin like one."""
    if len(file) < 33 or file[:8] != _SIGNATURE or file[12:16] != b"IHDR":
        raise ValueError("these bytes are no PNG file")
    width, height = struct.unpack(">II", file[16:24])
    if not width or not height:
        raise ValueError("the PNG file has no pixels")
    return width, height


def read(file: bytes) -> npt.NDArray[Any]:
    """The pixels of a file that `write` made: the array that it was given. Raises `ValueError` for any other file."""
    width, height = size_of(file)
    bits, kind = file[24], file[25]
    if bits not in (8, 16) or kind not in (_GREY, _COLOUR, _PALETTE):
        raise ValueError("the PNG file is none of our own")
    channels = 3 if kind == _COLOUR else 1
    length = 1 + width * channels * bits // 8
    unpacking = zlib.decompressobj()
    try:
        lines = unpacking.decompress(_data(file), height * length + 1)
    except zlib.error as error:
        raise ValueError(f"the PNG file is broken: {error}") from error
    if len(lines) != height * length:
        raise ValueError(f"the PNG file holds {len(lines)} bytes of pixels, and not {height * length}")
    table = np.frombuffer(lines, np.uint8).reshape(height, length)
    rows = table[:, 1:]
    if table[0, 0] == _UP:
        rows = np.add.accumulate(rows, axis=0, dtype=np.uint8)
    pixels = np.ascontiguousarray(rows).view(f">u{bits // 8}").astype(f"u{bits // 8}")
    return pixels.reshape(height, width, channels) if channels > 1 else pixels.reshape(height, width)


def _data(file: bytes) -> bytes:
    start = 8
    while start + 8 <= len(file):
        (length,) = struct.unpack(">I", file[start : start + 4])
        if file[start + 4 : start + 8] == b"IDAT":
            return file[start + 8 : start + 8 + length]
        start += 12 + length
    raise ValueError("the PNG file has no data")


def _file(*parts: bytes, data: bytes) -> bytes:
    return b"".join([_SIGNATURE, *parts, _chunk(b"IDAT", data), _chunk(b"IEND", b"")])


def _header(width: int, height: int, bits: int, kind: int) -> bytes:
    return _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))


def _chunk(name: bytes, data: bytes) -> bytes:
    return b"".join([struct.pack(">I", len(data)), name, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))])
