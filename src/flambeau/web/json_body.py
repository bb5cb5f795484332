"""The JSON body of a prediction: `{"input": ...}`, checked strictly and left unparsed.

The value under `input` stays text: the replica parses it, so the loop does not spend its time on numbers.
"""

import re

import msgspec

from flambeau.errors import RequestError


class _Body(msgspec.Struct):
    input: msgspec.Raw


_DECODER = msgspec.json.Decoder(_Body)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NOT_A_NUMBER = re.compile(rb"NaN|Infinity")


def read_input(body: bytes, *, max_depth: int) -> memoryview:
    """The JSON text of `input`.

    Raises `RequestError` with code `invalid_json`, `json_too_deep` or `json_not_finite`.
    """
    if deeper_than(body, max_depth):
        raise RequestError(f"the JSON is nested more than {max_depth} levels deep", code="json_too_deep")
    try:
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

    Strings and everything but brackets are thrown away; then each pass takes off the innermost level, so the work is
    bounded by `levels` passes over a shrinking text, all of it at the speed of C.
    """
    if body.count(b"[") + body.count(b"{") <= levels:
        return False
    brackets = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    for _ in range(levels):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return bool(brackets)


def _where(error: msgspec.DecodeError) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    return "it is cut short" if "truncated" in text else text
