"""The JSON of the Open Inference Protocol (KServe v2): a request's document, and its lists of numbers, to values.

The decoder holds the interpreter for a whole document, and so the loop. Long lists of numbers are therefore cut out
first, which takes two searches each, and decoded piece by piece; the loop gets a turn in between. What remains of the
document is short, and decoded as any.

    {"inputs": [{..., "data": [0.1, 0.2, ...]}]}   becomes   {"inputs": [{..., "data": "TOKEN"}]}   and the list
"""

import asyncio
import math
import secrets
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.errors import RequestError
from flambeau.pipelines import json_document
from flambeau.protocols.v2_datatypes import (
    NUMPY,
    Elements,
    V2Datatype,
    count_of,
    refuse_more_elements,
)
from flambeau.protocols.v2_values import ParameterValue

_SHORT = 16 * 1024  # bytes: a document up to this is decoded as it is
_CUT = 2 * 1024  # bytes: of a longer one, lists above this are cut out
_KEY = b'"data"'
_BETWEEN = 64  # bytes between a key and its list
_MOST_TENSORS = 256
_MOST_MEMBERS = 50_000  # beside the lists that were cut out: each costs a step of the decoder
_PIECE = 64 * 1024  # bytes of text that are decoded before the loop gets a turn
_LARGEST_REST = 8 * 2**20  # bytes of a document without its long lists: 7 ms
_KINDS_OF_BYTES = bytes(each if each in b"[]," else ord("0") for each in range(256))
_NO_BRACKETS = bytes.maketrans(b"[]", b"  ")
_WHITE = b" \t\r\n"


class TensorDocument(msgspec.Struct):
    """A tensor of a request. `data` is its JSON text, as far as it is there."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    shape: list[int]
    datatype: V2Datatype
    parameters: dict[str, ParameterValue] = {}
    data: msgspec.Raw = msgspec.Raw()


class OutputDocument(msgspec.Struct):
    """An output that a request asks for."""

    name: str
    parameters: dict[str, ParameterValue] = {}


class InferenceDocument(msgspec.Struct):
    """The body of an inference request."""

    inputs: list[TensorDocument]
    id: str = ""
    parameters: dict[str, ParameterValue] = {}
    outputs: list[OutputDocument] = []


_DECODER = msgspec.json.Decoder(InferenceDocument)


class _Cut:
    """A document whose long lists of numbers were cut out. The token stands for them, and nobody can guess it."""

    def __init__(self, body: bytes) -> None:
        self.lists: dict[bytes, bytes] = {}
        self.rest = body
        if len(body) > _SHORT:
            self._cut(body)

    def _cut(self, body: bytes) -> None:
        token = secrets.token_hex(16)
        pieces: list[bytes] = []
        kept = place = 0
        ends = _Ends(body)
        for _ in range(_MOST_TENSORS):
            place = body.find(_KEY, place) + len(_KEY)
            if place < len(_KEY):
                break
            start = _list_at(body, place)
            end = ends.of_list(start) if start else 0
            if end - start > _CUT:
                name = f'"{token}{len(self.lists)}"'.encode()
                self.lists[name] = body[start:end]
                pieces += (body[kept:start], name)
                kept = end
            place = max(place, end)
        self.rest = b"".join((*pieces, body[kept:]))


class _Ends:
    """Where lists of numbers end: before the next quote or brace. Looked for once, however often it is asked."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._next = {b'"': -1, b"}": -1}

    def of_list(self, start: int) -> int:
        """The end of the list that begins at `start`; 0 if it does not end."""
        for mark, at in self._next.items():
            if at < start:
                found = self._body.find(mark, start)
                self._next[mark] = len(self._body) if found < 0 else found
        return self._body.rfind(b"]", start, min(self._next.values())) + 1


def _list_at(body: bytes, place: int) -> int:
    """Where the list begins whose key ends at `place`; 0 if something else follows."""
    start = body.find(b"[", place, place + _BETWEEN)
    return start if start > 0 and body[place:start].strip(_WHITE) == b":" else 0


async def read(body: bytes | memoryview, *, max_depth: int) -> tuple[InferenceDocument, dict[bytes, bytes]]:
    """The document, and the texts of the lists that were cut out of it, by the text that stands in their place.

    Raises `RequestError`.
    """
    cut = _Cut(bytes(body))
    if len(cut.rest) > _LARGEST_REST:
        raise RequestError(
            f"the JSON has more than {_LARGEST_REST} bytes beside its lists of numbers: send tensors as binary data",
            code="body_too_large",
        )
    if sum(map(cut.rest.count, (b",", b"[", b"{"))) > _MOST_MEMBERS:
        raise RequestError(
            f"the JSON has more than {_MOST_MEMBERS} members beside its lists of numbers: send tensors as binary data",
            code="body_too_large",
        )
    try:
        document = json_document.decode(cut.rest, _DECODER, max_depth=max_depth)
    except msgspec.ValidationError as error:
        raise RequestError(f"the request is not understood: {error}", code="invalid_json") from None
    if len(document.inputs) > _MOST_TENSORS or len(document.outputs) > _MOST_TENSORS:
        raise RequestError(f"the request has more than {_MOST_TENSORS} tensors", code="invalid_tensor")
    if cut.lists and not cut.lists.keys() <= {bytes(memoryview(each.data)) for each in document.inputs}:
        raise RequestError("the request has a long list that is no input's data", code="invalid_json")
    return document, cut.lists


async def tensor(document: TensorDocument, text: bytes, *, most_elements: int) -> npt.NDArray[Any] | Elements:
    """The tensor in a JSON list, flat or nested as its shape is. Raises `RequestError` that names the input."""
    name, shape, datatype = document.name, tuple(document.shape), document.datatype
    count = count_of(name, shape)
    if datatype == "BYTES":
        refuse_more_elements(name, count, most_elements)
        return _texts(name, text, count)
    if datatype == "BF16":
        raise _wrong(name, "BF16 has no JSON form: send it as binary data, or as FP32")
    if count > (len(text) + 1) // 2:  # a number and a comma each: before memory is taken
        raise _wrong(name, f"it has fewer numbers than the {count} of its shape")
    try:
        return (await _numbers(name, text.strip(_WHITE), shape, datatype)).reshape(shape)
    except msgspec.ValidationError as error:
        way = ": NaN is sent as binary data" if "`null`" in str(error) else ""
        raise _wrong(name, f"it is no list of {datatype}: {error}{way}") from None
    except msgspec.DecodeError as error:
        code = "json_not_finite" if b"N" in text or b"I" in text else "invalid_json"
        told = (
            "NaN and Infinity are not JSON: send the tensor as binary data" if code == "json_not_finite" else str(error)
        )
        raise RequestError(f"the data of the input '{name}' is not JSON: {told}", code=code) from None  # type: ignore[arg-type]


async def _numbers(name: str, text: bytes, shape: tuple[int, ...], datatype: V2Datatype) -> npt.NDArray[Any]:
    """The numbers of a list, shape (count,), decoded piece by piece."""
    if not text.startswith(b"[") or not text.endswith(b"]"):
        raise _wrong(name, "it is not a list")
    decoder = _DECODERS[NUMPY[datatype].kind]
    nested = text.find(b"[", 1) >= 0
    if nested:
        await _check_nesting(name, text, shape)
    count = math.prod(shape)
    array = np.empty(count, NUMPY[datatype])
    filled, place, last = 0, 1, len(text) - 1
    while place < last:
        end = text.find(b",", place + _PIECE)
        end = last if end < 0 else min(end, last)
        piece = text[place:end]
        if nested:
            piece = piece.translate(_NO_BRACKETS)
        numbers = decoder.decode(b"[" + piece + b"]")
        if filled + len(numbers) > count:
            raise _wrong(name, f"it has more numbers than the {count} of its shape")
        if not numbers and filled:
            raise _wrong(name, "a number is missing behind a comma")
        array[filled : filled + len(numbers)] = _converted(name, numbers, array.dtype, datatype)
        filled += len(numbers)
        if end == last - 1 and text[end:last] == b",":
            raise _wrong(name, "a number is missing behind a comma")
        place = end + 1
        if place < last:
            await asyncio.sleep(0)
    if filled < count:
        raise _wrong(name, f"it has {filled} numbers, but its shape {list(shape)} has {count}")
    return array


_DECODERS: "dict[str, msgspec.json.Decoder[list[Any]]]" = {
    kind: msgspec.json.Decoder(list[number])  # type: ignore[valid-type]
    for kind, number in {"b": bool, "i": int, "u": int, "f": float}.items()
}


def _converted(name: str, numbers: list[Any], dtype: "np.dtype[Any]", datatype: V2Datatype) -> npt.NDArray[Any]:
    """The numbers as that dtype. Raises `RequestError` for one that it does not hold."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            found = np.array(numbers, np.float64).astype(dtype)
        if not np.isfinite(found).all():
            raise _wrong(name, f"a number is too large for {datatype}")
        return found
    if dtype.kind in "iu" and numbers:
        limits = np.iinfo(dtype)
        if min(numbers) < limits.min or max(numbers) > limits.max:
            raise _wrong(name, f"a number is too large for {datatype}")
    return np.array(numbers, dtype)


async def _check_nesting(name: str, text: bytes, shape: tuple[int, ...]) -> None:
    """Raise `RequestError` unless the lists are nested as that shape is, piece by piece.

    Their brackets and commas must be those of the shape, and no number may stand before `[` or behind `]`. Whether
    there is a number wherever one belongs is found when they are decoded.
    """
    expected, place, before = _marks_of_shape(shape), 0, b""
    for start in range(0, len(text), 4 * _PIECE):
        kinds = before + text[start : start + 4 * _PIECE].translate(_KINDS_OF_BYTES, _WHITE)
        marks = kinds[len(before) :].translate(None, b"0")
        if b"0[" in kinds or b"]0" in kinds or marks != expected[place : place + len(marks)]:
            raise _wrong(name, f"its lists are not nested as its shape {list(shape)} is, and it is not flat")
        place, before = place + len(marks), kinds[-1:]
        if len(text) > 4 * _PIECE:
            await asyncio.sleep(0)
    if place != len(expected):
        raise _wrong(name, f"its lists are not nested as its shape {list(shape)} is, and it is not flat")


def _marks_of_shape(shape: tuple[int, ...]) -> bytes:
    """The brackets and commas of nested lists: for (2, 3), `[[,,],[,,]]`."""
    marks = b""
    for size in reversed(shape):
        marks = b"[" + ((marks + b",") * size)[:-1] + b"]"
    return marks


def _texts(name: str, text: bytes, count: int) -> Elements:
    """The elements of a list of strings, or of nested ones."""
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise _wrong(name, f"it is not JSON: {error}") from None
    flat: list[bytes] = []
    waiting = [found] if isinstance(found, list) else []
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            if len(each) > count:
                break
            waiting.extend(reversed(each))
        elif isinstance(each, str):
            flat.append(each.encode())
        else:
            raise _wrong(name, "BYTES in JSON are a list of strings")
    if len(flat) != count or waiting:
        raise _wrong(name, f"it has not the {count} strings of its shape")
    return tuple(flat)


async def json_of(datatype: V2Datatype, data: npt.NDArray[Any] | Elements) -> tuple[bytes, int]:
    """The flat JSON list of a tensor, and how many of its numbers are NaN or infinite, which become null.

    Long ones are encoded piece by piece. Raises `RequestError` for BYTES that are no text.
    """
    if isinstance(data, tuple):
        try:
            return msgspec.json.encode([str(each, "utf-8") for each in data]), 0
        except UnicodeDecodeError:
            raise RequestError(
                "an output of BYTES is no text, and has no JSON form: ask for binary data", code="bad_request"
            ) from None
    flat = np.ascontiguousarray(data).reshape(-1)
    nonfinite = int(flat.size - np.count_nonzero(np.isfinite(flat))) if flat.dtype.kind == "f" else 0
    pieces = []
    for start in range(0, flat.size, _NUMBERS_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        pieces.append(msgspec.json.encode(flat[start : start + _NUMBERS_AT_ONCE].tolist())[1:-1])
    return b"[" + b",".join(pieces) + b"]", nonfinite


_NUMBERS_AT_ONCE = 8192  # encoded before the loop gets a turn: half a millisecond


def _wrong(name: str, why: str) -> RequestError:
    return RequestError(f"the data of the input '{name}' does not fit: {why}", code="invalid_tensor")
