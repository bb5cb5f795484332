"""The JSON document of a prediction: `{"input": ...}`, checked strictly, its value left unparsed.

The front checks short documents, so that mistakes are reported at once. It passes long ones to the replica unchecked:
they could hold up the loop for too long. The error messages are the same in both places. Every step runs at the speed
of C in linear time, and makes no objects from the contents.
"""

import re
from collections.abc import Callable
from typing import TypeVar

import msgspec
import numpy as np

from flambeau.errors import RequestError
from flambeau.types import Payload

SHORT = 64 * 1024
"""Bytes: a document up to this size is checked in much less than 5 ms, whatever is in it."""

T = TypeVar("T", bound=msgspec.Struct)


class _InputDocument(msgspec.Struct):
    input: msgspec.Raw


_DECODER = msgspec.json.Decoder(_InputDocument)
_QUOTE = 2
_NOT_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_MARKS = bytes.maketrans(b'[{]}"', b"\x01\x01\xff\xff\x02")  # as signed bytes: +1 opens a level, -1 closes one, 2 is "
_COMMA = 3
_NOT_MARKS_OR_COMMAS = bytes(set(range(256)) - set(b'[]{}",'))
_MARKS_AND_COMMAS = bytes.maketrans(b'[{]}",', b"\x01\x01\xff\xff\x02\x03")
_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_HALF = re.compile(rb"\\u[dD][89abcdefABCDEF][0-9a-fA-F]{2}")
_SURROGATE = "it has half of a surrogate pair, such as \\ud800, which is no character"
_NOT_FINITE = (
    "NaN and Infinity are not JSON: send finite numbers; a missing number is null, where the network takes those, and "
    "binary data over KServe v2 has NaN itself"
)
_NOT_A_NUMBER = (b"NaN", b"Infinity", b"-Infinity")


def read_input(body: bytes, *, max_depth: int) -> memoryview:
    """The JSON text of `input`.

    Raises `RequestError` with code `invalid_json`, `json_too_deep` or `json_not_finite`.
    """
    try:
        found = decode(body, _DECODER, max_depth=max_depth)
    except msgspec.ValidationError as error:
        if "missing required field" in str(error):
            raise RequestError('the JSON object has no "input": send {"input": ...}', code="invalid_json") from None
        raise RequestError('the JSON is not an object: send {"input": ...}', code="invalid_json") from None
    value = memoryview(found.input)
    refuse_another(body, value, "input", lambda rest: len(memoryview(_REST.decode(rest).input)))
    return value


class _Rest(msgspec.Struct):
    input: msgspec.Raw = msgspec.Raw()


_REST = msgspec.json.Decoder(_Rest)


def decode(body: bytes, decoder: "msgspec.json.Decoder[T]", *, max_depth: int) -> T:
    """The document as the decoder's struct, whose fields are `Raw`.

    Raises `RequestError` as `read_input` does, and `msgspec.ValidationError` for JSON that does not fit the struct.
    """
    if body.count(b"[") + body.count(b"{") > max_depth and deeper_than(body, max_depth):
        raise RequestError(f"the JSON is nested more than {max_depth} levels deep", code="json_too_deep")
    try:
        if not body.isascii():
            body.decode("utf-8")  # the decoder does not check the strings within a `Raw` field
        return decoder.decode(body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError as error:
        if body.startswith(_NOT_A_NUMBER, _place(error)):
            raise RequestError(_NOT_FINITE, code="json_not_finite") from None
        where = _SURROGATE if _has_lone_surrogate(body) else _where(error)
        raise RequestError(f"the body is not JSON: {where}", code="invalid_json") from None
    except UnicodeDecodeError:
        raise RequestError("the body is not JSON: it is not text in UTF-8", code="invalid_json") from None


def refuse_another(body: bytes, value: memoryview, name: str, look: Callable[[bytes], object]) -> None:
    """Raise `RequestError` if the object has a second member of that name (T-22): parsers differ in which one counts.

    `value` is the member that was found, a view into `body`. It is cut out with its name, and `look` says whether the
    rest has another. So the value, which is nearly the whole document, is not parsed again. For example, with `name`
    "input", `{"input": [1], "a": 2, "input": [3]}` is looked at again as `{"input": [1], "a": 2, "":0}`.
    """
    if b"\\" not in body and body.count(b'"%b"' % name.encode()) < 2:  # without escapes the name has one spelling
        return
    start = _offset(value, body)
    closing = body.rfind(b'"', 0, start)  # of the name; even one written with escapes has no bare quote inside
    opening = body.rfind(b'"', 0, closing)
    rest = body[:opening] + b'"":0' + body[start + len(value) :]
    if look(rest):
        raise RequestError(f'the JSON object has "{name}" more than once: send it once', code="invalid_json")


def _offset(view: memoryview, body: bytes) -> int:
    """The offset of `view` in `body`, from their addresses."""
    whole, part = (np.frombuffer(each, np.uint8).__array_interface__["data"][0] for each in (body, view))
    return int(part - whole)


def deeper_than(body: bytes, levels: int) -> bool:
    """Whether arrays and objects are nested deeper than `levels`.

    Everything but brackets and quotes is dropped; brackets after an odd number of quotes are inside a string; the
    others are summed up. Linear, at the speed of C, without recursion. The decoder checks whether the brackets match.
    For example, in `{"a": [1, "]"]}` the levels are 1, 2, 1, 0: the bracket in the string does not count.
    """
    if body.count(b"[") + body.count(b"{") <= levels:
        return False
    if b"\\" in body:  # escaped quotes do not end a string
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = np.frombuffer(body.translate(_MARKS, _NOT_MARKS), np.int8)
    quotes = marks == _QUOTE
    steps = marks * ~(quotes | np.logical_xor.accumulate(quotes)) if quotes.any() else marks
    return bool(np.cumsum(steps, dtype=np.int32).max(initial=0) > levels)


def elements_of(text: bytes) -> int:
    """How many elements a JSON list has, without making them: its commas at the first level, and one.

    As in `deeper_than`; the text is known to be a list that is not empty.
    """
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = np.frombuffer(text.translate(_MARKS_AND_COMMAS, _NOT_MARKS_OR_COMMAS), np.int8)
    quotes = marks == _QUOTE
    outside = ~np.logical_xor.accumulate(quotes) if quotes.any() else np.ones(len(marks), np.bool_)
    levels = np.cumsum(np.where(outside & (np.abs(marks) == 1), marks, 0), dtype=np.int32)
    return 1 + int(np.count_nonzero((marks == _COMMA) & outside & (levels == 1)))


def _has_lone_surrogate(body: bytes) -> bool:
    """Whether an escape such as \\ud800 lacks its other half: then it is not a character (RFC 8259, 8.2)."""
    if b"\\u" not in body:
        return False
    return _HALF.search(_PAIR.sub(b"", body.replace(b"\\\\", b""))) is not None


def _place(error: msgspec.DecodeError) -> int:
    """The byte at which the decoder stopped."""
    _, _, place = str(error).rpartition("(byte ")
    digits = place.removesuffix(")")
    return int(digits) if digits.isdigit() else 0


def _where(error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    return "it is cut short" if "truncated" in text else text


def open_document(payload: Payload, *, max_depth: int) -> Payload:
    """The input of a document that the front has not checked; other payloads unchanged. Called in the replica."""
    if payload.kind != "document":
        return payload
    return Payload("json", read_input(bytes(payload.data), max_depth=max_depth))
