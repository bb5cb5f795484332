"""The JSON body of a prediction: `{"input": ...}`, checked strictly and left unparsed.

The value under `input` stays text: the replica parses it, so the loop does not spend its time on numbers.
"""

import re

import msgspec
import numpy as np

from flambeau.errors import RequestError


class _Body(msgspec.Struct):
    input: msgspec.Raw


_DECODER = msgspec.json.Decoder(_Body)
# Possessive, and an unclosed string runs to the end: no text makes it go back, so it is linear over any text.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # as signed bytes: one level down, one level up
_NOT_A_NUMBER = re.compile(rb"NaN|Infinity")


def read_input(body: bytes, *, max_depth: int) -> memoryview:
    """The JSON text of `input`.

    Raises `RequestError` with code `invalid_json`, `json_too_deep` or `json_not_finite`.
    """
    if deeper_than(body, max_depth):
        raise RequestError(f"the JSON is nested more than {max_depth} levels deep", code="json_too_deep")
    try:
        if not body.isascii():
            body.decode("utf-8")  # the decoder passes over what lies under `input` without reading its strings
        return memoryview(_DECODER.decode(body).input)
    except msgspec.ValidationError as error:
        if "missing required field" in str(error):
            raise RequestError('the JSON object has no "input": send {"input": ...}', code="invalid_json") from None
        raise RequestError('the JSON is not an object: send {"input": ...}', code="invalid_json") from None
    except msgspec.DecodeError as error:
        if _NOT_A_NUMBER.search(_STRING.sub(b"", body)):
            raise RequestError("NaN and Infinity are not JSON: send finite numbers", code="json_not_finite") from None
        raise RequestError(f"the body is not JSON: {_where(error)}", code="invalid_json") from None
    except UnicodeDecodeError:
        raise RequestError("the body is not JSON: it is not text in UTF-8", code="invalid_json") from None


def deeper_than(body: bytes, levels: int) -> bool:
    """Whether arrays and objects are nested deeper than `levels`.

    Strings and everything but brackets are thrown away, and the rest is summed up: linear, at the speed of C, and
    without recursion. Whether the brackets match is for the decoder to say.
    """
    if body.count(b"[") + body.count(b"{") <= levels:
        return False
    steps = np.frombuffer(_STRING.sub(b"", body).translate(_STEPS, _NOT_BRACKETS), np.int8)
    return bool(np.cumsum(steps, dtype=np.int32).max(initial=0) > levels)


def _where(error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    return "it is cut short" if "truncated" in text else text
