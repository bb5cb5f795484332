"""Safetensors: eight bytes of length, a JSON header, and the tensors one after the other (T-25).

The header is read by a scanner of its own, member by member, so that its size bounds the memory it can ask for, and a
key given twice is seen.
"""

import json
import re
import struct
from typing import Any, BinaryIO

from flambeau.checkpoints.report import DOWNLOAD_AGAIN, ScanError, TensorInfo, TensorMapping, plain
from flambeau.checkpoints.scan_budget import MOST_TENSORS, refuse_too_many

_LONGEST_HEADER = 16 * 2**20
_LONGEST_DESCRIPTION = 2048
_MOST_DIMENSIONS = 64

_DTYPES = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "U16": ("uint16", 2), "I16": ("int16", 2),
    "U32": ("uint32", 4), "I32": ("int32", 4), "U64": ("uint64", 8), "I64": ("int64", 8), "F16": ("float16", 2),
    "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8), "C64": ("complex64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "F8_E8M0": ("float8_e8m0fnu", 1),
}  # fmt: skip

_SCANNER = json.JSONDecoder()
_BLANKS = re.compile(r"[ \t\r\n]*")


def looks_like_safetensors(head: bytes) -> bool:
    """Whether the first nine bytes are a length and a brace. Nine bytes of text are not."""
    return head[8:9] == b"{" and any(byte < 9 or byte > 126 for byte in head[:8])


def read(file: BinaryIO, size: int) -> tuple[TensorMapping, dict[str, str]]:
    """The tensors, and the file's own metadata. Raises `ScanError` for a header that does not fit the file exactly."""
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _LONGEST_HEADER:
        raise ScanError(f"declares a header of {length:,} bytes; {_LONGEST_HEADER:,} are enough for any model")
    if 8 + length > size:
        raise ScanError(
            f"declares a header of {length:,} bytes and has {size:,} in all: it is cut short", DOWNLOAD_AGAIN
        )
    try:
        tensors, spans, metadata = _header(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError):
        raise ScanError("has a header that is not the JSON of safetensors", DOWNLOAD_AGAIN) from None
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            what = "overlap" if start < end else "leave a gap"
            raise ScanError(f"has tensors that {what} at {plain(name)}, where each must begin at the end of another")
        end = stop
    if 8 + length + end != size:
        more = "is cut short" if 8 + length + end > size else "has bytes after its last tensor"
        raise ScanError(f"{more}: its tensors end at {8 + length + end:,} and the file at {size:,}", DOWNLOAD_AGAIN)
    return TensorMapping((), tensors), metadata


def _header(text: str) -> tuple[dict[str, TensorInfo], list[tuple[int, int, str]], dict[str, str]]:
    """The tensors, their spans and the metadata. Raises `ValueError` for bad JSON and `ScanError` for bad contents."""
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    metadata: dict[str, str] | None = None
    position = _skip(text, 0, "{")
    while text[position : position + 1] != "}":
        name, position = _string(text, position)
        position = _skip(text, position, ":")
        if name == "__metadata__" and metadata is None:
            metadata, position = _metadata(text, position)
        elif name in tensors or name == "__metadata__":
            raise ScanError(f"names {plain(name)} twice in its header")
        elif len(tensors) == MOST_TENSORS:
            raise ScanError(f"has more than {MOST_TENSORS:,} tensors")
        else:
            end = text.index("}", position) + 1
            if end - position > _LONGEST_DESCRIPTION:
                raise ScanError(f"describes its tensor {plain(name)} at a length that hides something")
            tensors[name], span = _tensor(name, json.loads(text[position:end], object_pairs_hook=_once))
            spans.append((*span, name))
            position = end
        position = _next(text, position)
    if text[position + 1 :].strip(" \t\r\n"):
        raise ValueError(text[position + 1 :][:20])
    refuse_too_many(tensors)
    return tensors, spans, metadata or {}


def _metadata(text: str, position: int) -> tuple[dict[str, str], int]:
    found: dict[str, str] = {}
    position = _skip(text, position, "{")
    while text[position : position + 1] != "}":
        name, position = _string(text, position)
        position = _skip(text, position, ":")
        if text[position : position + 1] != '"':
            raise ScanError(f"has metadata {plain(name)} that is no text")
        if name in found:
            raise ScanError(f"names {plain(name)} twice in its metadata")
        if len(found) == MOST_TENSORS:
            raise ScanError("has metadata without an end")
        found[name], position = _string(text, position)
        position = _next(text, position)
    return found, position + 1


def _tensor(name: str, described: Any) -> tuple[TensorInfo, tuple[int, int]]:
    if not isinstance(described, dict) or described.keys() != {"dtype", "shape", "data_offsets"}:
        raise ScanError(f"describes its tensor {plain(name)} by other things than dtype, shape and data_offsets")
    kind, shape, span = described["dtype"], described["shape"], described["data_offsets"]
    if type(kind) is not str or kind not in _DTYPES:
        raise ScanError(f"gives its tensor {plain(name)} a dtype that is not known: {plain(repr(kind))}")
    if not _is_whole(shape) or len(shape) > _MOST_DIMENSIONS or not _is_whole(span) or len(span) != 2:
        raise ScanError(f"gives its tensor {plain(name)} a shape or a place that is no list of whole numbers")
    dtype, size = _DTYPES[kind]
    for count in shape:
        size *= count
    if span[1] - span[0] != size:
        raise ScanError(
            f"gives its tensor {plain(name)} {span[1] - span[0]:,} bytes, not what its shape and dtype take"
        )
    return TensorInfo(dtype, tuple(shape)), (span[0], span[1])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ScanError("names the same thing of a tensor twice in its header")
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _string(text: str, position: int) -> tuple[str, int]:
    """The string that begins at `position`, and where it ends. Raises `ValueError` where none does."""
    if text[position : position + 1] != '"':
        raise ValueError(position)
    value, end = _SCANNER.raw_decode(text, position)
    value.encode()  # a lone surrogate is no name: UnicodeEncodeError is a ValueError
    return value, end


def _skip(text: str, position: int, sign: str) -> int:
    """The place of what follows `sign`, blanks around it left out. Raises `ValueError` where it does not stand."""
    position = _blanks(text, position)
    if text[position : position + 1] != sign:
        raise ValueError(position)
    return _blanks(text, position + 1)


def _next(text: str, position: int) -> int:
    """The place of the next member after a comma, or of the closing brace."""
    position = _blanks(text, position)
    if text[position : position + 1] == "}":
        return position
    position = _skip(text, position, ",")
    if text[position : position + 1] == "}":
        raise ValueError(position)
    return position


def _blanks(text: str, position: int) -> int:
    found = _BLANKS.match(text, position)
    return found.end() if found else position
