"""An image as base64 in a JSON document, as web pages and the clients of other servers send it.

    {"image": "<base64>"}  {"input": "<base64>"}  {"inputs": "<base64>"}   each may be a data URL, or {"b64": "..."}
    {"instances": [{"b64": "<base64>"}]}                                   one, also as {"image_bytes": {"b64": "..."}}

All are answered like the part `file`. Several instances are refused: send several images as the parts of a form.
"""

import binascii
import re

import msgspec

from flambeau.errors import InvalidInput
from flambeau.pipelines import json_document
from flambeau.types import Payload

SEND = 'send {"image": "<the file in base64>"}, or the file itself as multipart field \'file\' or as the body'
"""What is always accepted, as the end of a sentence."""

_NAMES = ("image", "input", "inputs", "instances")


class _Base64Document(msgspec.Struct):
    image: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    inputs: msgspec.Raw = msgspec.Raw()
    instances: msgspec.Raw = msgspec.Raw()


class _Wrapped(msgspec.Struct):
    b64: msgspec.Raw = msgspec.Raw()
    image_bytes: msgspec.Raw = msgspec.Raw()


_DOCUMENT = msgspec.json.Decoder(_Base64Document)
_WRAPPED = msgspec.json.Decoder(_Wrapped)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_TEXT = msgspec.json.Decoder(str)
_DATA_URL = re.compile(r"data:[^,]{0,200},")
_URL_SAFE = str.maketrans("-_", "+/")
_BLANKS = re.compile(r"[ \t\r\n]+")


def open_image(payload: Payload, *, max_depth: int) -> Payload:
    """The file in a payload of kind `document`; other payloads unchanged. Raises `RequestError`."""
    if payload.kind != "document":
        return payload
    return Payload("file", read_image(bytes(payload.data), max_depth=max_depth))


def open_sound(payload: Payload, *, max_depth: int) -> Payload:
    """`open_image` for sound files, with sentences about those. Raises `RequestError`."""
    try:
        return open_image(payload, max_depth=max_depth)
    except InvalidInput as error:
        told = (
            'send {"input": "<a sound file in base64>"}, or the file itself as multipart field \'file\' or as the body'
        )
        raise InvalidInput(f"the JSON has no sound file in base64: {told}", code=error.code) from None


def read_image(body: bytes, *, max_depth: int) -> bytes:
    """The bytes of the file in a JSON document. Raises `RequestError` that says what to send."""
    try:
        document = json_document.decode(body, _DOCUMENT, max_depth=max_depth)
    except msgspec.ValidationError:
        raise _not_taken("the JSON is not an object", code="invalid_json") from None
    found = {name: value for name in _NAMES if (value := memoryview(getattr(document, name)))}
    if not found:
        raise _not_taken('the JSON object has neither "image" nor "input"', code="invalid_json")
    if len(found) > 1:
        raise _not_taken(f"the JSON object has {' and '.join(map(_quoted, found))}, but only one image is allowed")
    [(name, value)] = found.items()
    json_document.refuse_another(body, value, name, lambda rest: len(memoryview(getattr(_DOCUMENT.decode(rest), name))))
    return _decoded(_text(_only_instance(value) if name == "instances" else value, name), name)


def _only_instance(value: memoryview) -> memoryview:
    try:
        instances = _LIST.decode(value)
    except msgspec.DecodeError:
        raise _not_taken('"instances" is not a list') from None
    if len(instances) != 1:
        raise _not_taken(
            f'"instances" has {len(instances)} members, but only one image is allowed',
            hint="send several images as several parts 'file' of one multipart form",
        )
    return memoryview(instances[0])


def _text(value: memoryview, name: str) -> str:
    """The base64 text: the value itself, or wrapped in up to two objects."""
    for _ in range(3):
        try:
            if bytes(value[:1]) != b"{":
                return _TEXT.decode(value)
            text = bytes(value)
            wrapped = _WRAPPED.decode(text)
        except msgspec.DecodeError:
            break
        inner = memoryview(wrapped.b64) or memoryview(wrapped.image_bytes)
        if not inner:
            break
        key = "b64" if memoryview(wrapped.b64) else "image_bytes"
        _refuse_another_wrapped(text, inner, key)
        value = inner
    raise _not_taken(f'this model takes an image, but "{name}" is neither base64 nor {{"b64": "<base64>"}}')


def _refuse_another_wrapped(text: bytes, inner: memoryview, key: str) -> None:
    json_document.refuse_another(text, inner, key, lambda rest: len(memoryview(getattr(_WRAPPED.decode(rest), key))))


def _decoded(text: str, name: str) -> bytes:
    if text.startswith("data:"):
        header = _DATA_URL.match(text)
        if header is None or not header[0].lower().removesuffix(",").endswith(";base64"):
            raise _not_taken(f'the data URL in "{name}" is not base64', code="input_rejected")
        text = text[header.end() :]
    text = _BLANKS.sub("", text).translate(_URL_SAFE).rstrip("=")
    try:
        data = binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except (ValueError, binascii.Error):
        raise _not_taken(f'"{name}", {len(text)} characters long, is not valid base64', code="input_rejected") from None
    if not data:
        raise InvalidInput(f'"{name}" is empty', code="empty_body")
    return data


def _quoted(name: str) -> str:
    return f'"{name}"'


def _not_taken(found: str, *, code: str = "unsupported_media_type", hint: str | None = None) -> InvalidInput:
    return InvalidInput(f"{found}: {SEND}", code=code, hint=hint)  # type: ignore[arg-type]  # of the closed set
