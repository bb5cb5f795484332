"""Safetensors: eight bytes of length, a JSON header, and the tensors one after the other (T-25).

The safetensors library silently keeps the last of two tensors with the same name, so the header is read here.
"""

import json
import struct
from collections import Counter
from typing import Any, BinaryIO

from flambeau.checkpoints.report import (
    DOWNLOAD_AGAIN,
    MOST_TENSORS,
    ScanError,
    TensorInfo,
    TensorMapping,
    plain,
    refuse_too_many,
)

_LONGEST_HEADER = 16 * 2**20
_MOST_BRACKETS = 4 * MOST_TENSORS
_MOST_DIMENSIONS = 64

_DTYPES = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "U16": ("uint16", 2), "I16": ("int16", 2),
    "U32": ("uint32", 4), "I32": ("int32", 4), "U64": ("uint64", 8), "I64": ("int64", 8), "F16": ("float16", 2),
    "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8), "C64": ("complex64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "F8_E8M0": ("float8_e8m0fnu", 1),
}  # fmt: skip


def looks_like_safetensors(head: bytes) -> bool:
    """Whether the first nine bytes are a length and a brace, and not nine characters of text."""
    return head[8:9] == b"{" and any(byte < 9 or byte > 126 for byte in head[:8])


def read(file: BinaryIO, size: int) -> tuple[TensorMapping, dict[str, str]]:
    """The tensors and the file's own metadata. Raises `ScanError` for a header that does not match the file exactly."""
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
    if text.count("{") + text.count("[") > _MOST_BRACKETS:  # each would become a Python object
        raise ScanError(f"has a header of more parts than {MOST_TENSORS:,} tensors, which no network exceeds, have")
    described = json.loads(text, object_pairs_hook=_once)
    if not isinstance(described, dict):
        raise ValueError(text[:20])
    for name in described:
        name.encode()  # raises for a lone surrogate: UnicodeEncodeError is a ValueError
    metadata = described.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(each, str) for each in metadata.values()):
        raise ScanError("has metadata that is not text")
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, tensor in described.items():
        tensors[name], span = _tensor(name, tensor)
        spans.append((*span, name))
    refuse_too_many(tensors)
    return tensors, spans, metadata


def _tensor(name: str, described: Any) -> tuple[TensorInfo, tuple[int, int]]:
    if not isinstance(described, dict) or described.keys() != {"dtype", "shape", "data_offsets"}:
        raise ScanError(f"describes its tensor {plain(name)} by other things than dtype, shape and data_offsets")
    kind, shape, span = described["dtype"], described["shape"], described["data_offsets"]
    if type(kind) is not str or kind not in _DTYPES:
        raise ScanError(f"gives its tensor {plain(name)} a dtype that is not known: {plain(repr(kind))}")
    if not _is_whole(shape) or len(shape) > _MOST_DIMENSIONS or not _is_whole(span) or len(span) != 2:
        raise ScanError(f"gives its tensor {plain(name)} a shape or a place that is not a list of whole numbers")
    dtype, size = _DTYPES[kind]
    for count in shape:
        size *= count
    if span[1] - span[0] != size:
        raise ScanError(
            f"gives its tensor {plain(name)} {span[1] - span[0]:,} bytes, not what its shape and dtype take"
        )
    return TensorInfo(dtype, tuple(shape)), (span[0], span[1])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ScanError(f"names {plain(names.most_common(1)[0][0])} twice in its header")
    return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)
