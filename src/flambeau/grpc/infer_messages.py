"""A `ModelInferRequest` as it came. A client's are alike but for their raw contents and their ids, so what is alike is
read once, and kept with those of the last few hundred forms of requests.

What the fields mean is not known here.
"""

from collections.abc import Sequence
from typing import Any

from flambeau.grpc.descriptors import message
from flambeau.grpc.message_cost import cut
from flambeau.system.known_bytes import KnownBytes

REQUEST: Any = message("ModelInferRequest")

_ID, _RAW = 0x1A, 0x3A  # a field's number and kind, of the fields that are cut out
_OTHERS = frozenset({0x0A, 0x12, 0x22, 0x2A, 0x32})
_LONGEST = 2048  # bytes of a form that is kept


class Form:
    """What requests have in common: their fields without id and raw contents. `described` is the reader's to fill."""

    __slots__ = ("described", "fields", "model_name", "model_version")

    def __init__(self, fields: Any) -> None:
        self.fields = fields
        self.model_name: str = fields.model_name
        self.model_version: str | None = fields.model_version or None
        self.described: Any = None


class InferMessage:
    """A request. `raw`: its raw contents, which those of a long one are views of."""

    __slots__ = ("form", "identity", "raw")

    def __init__(self, form: Form, identity: str, raw: Sequence[bytes | memoryview]) -> None:
        self.form = form
        self.identity = identity
        self.raw = raw


_forms: KnownBytes[Form] = KnownBytes(128)


def read(raw: bytes | memoryview) -> InferMessage:
    """The request in those bytes. Raises `RequestError` for one that costs too much, and what protobuf raises."""
    beside, contents = cut(raw)
    found = _apart(beside)
    if found is None:  # fields in a form that nobody sends: protobuf knows what they are
        fields = REQUEST.FromString(beside)
        return InferMessage(Form(fields), fields.id, contents or fields.raw_input_contents)
    key, identity, short = found
    form = _forms.get(key)
    if form is None:
        form = Form(REQUEST.FromString(key))
        if len(key) <= _LONGEST:
            _forms.keep(key, form)
    return InferMessage(form, identity, contents or short)


def _apart(raw: bytes) -> tuple[bytes, str, list[bytes]] | None:
    """The fields but for id and raw contents; the id; the raw contents. `None` if it is not written as usual."""
    place, kept, end = 0, 0, len(raw)
    pieces: list[bytes] = []
    contents: list[bytes] = []
    identity = b""
    try:
        while place < end:
            tag, size = raw[place], raw[place + 1]
            start = place + 2
            if size & 128:
                size = size & 127 | raw[start] << 7
                start += 1
                if size & 1 << 14:
                    size = size & (1 << 14) - 1 | raw[start] << 14
                    start += 1
                    if size & 1 << 21:
                        return None
            stop = start + size
            if stop > end:
                return None
            if tag in (_RAW, _ID):
                pieces.append(raw[kept:place])
                kept = stop
                if tag == _RAW:
                    contents.append(raw[start:stop])
                else:
                    identity = raw[start:stop]
            elif tag not in _OTHERS:
                return None
            place = stop
        pieces.append(raw[kept:])
        return b"".join(pieces), identity.decode(), contents
    except (IndexError, UnicodeDecodeError):
        return None
