"""Bounds what a message may cost to read, before it is read.

A message of a few million empty fields is small, and takes seconds and gigabytes to read, on the loop. So of a long
`ModelInferRequest` everything but the payload of its tensors is counted first: raw contents, floats and elements of
BYTES are copied as they are, however long, and all the rest has to fit into 64 KiB. That includes whole numbers in
typed contents, which are encoded one by one: more of them go as raw contents. This module knows the encoding of
protobuf and the numbers of a few fields, and no values.
"""

from flambeau.errors import RequestError

SMALL = 16 * 1024
"""Bytes: a message up to this size costs a millisecond at most, whatever is in it."""

MOST_BESIDE = 64 * 1024
"""Bytes of a message beside the payload of its tensors; and of a message that has no tensors."""

_MOST_FIELDS = 4096

_INSIDE = {("request", 5): "input", ("input", 5): "contents"}
"""The fields whose messages are looked into."""

_PAYLOAD = frozenset({("request", 7), ("contents", 6), ("contents", 7), ("contents", 8)})
"""raw_input_contents; fp32_contents, fp64_contents and bytes_contents."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIZES = {_FIXED64: 8, _FIXED32: 4}


def refuse_costly(raw: bytes) -> None:
    """Raise `RequestError` for a `ModelInferRequest` that would cost far more to read than its tensors."""
    if len(raw) > SMALL:
        try:
            _Walk(raw).through(0, len(raw), "request")
        except IndexError:  # it ends within a field
            raise _broken() from None


class _Walk:
    """A walk through the fields of one message, which counts them."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._fields = 0
        self._beside = 0

    def through(self, place: int, end: int, where: str) -> None:
        """Count what lies between two places, which is a message of that kind."""
        while place < end:
            before = place
            tag, place = self._number(place)
            number, kind = tag >> 3, tag & 7
            payload = 0
            if kind == _BYTES:
                size, place = self._number(place)
                if size > end - place:
                    raise _broken()
                if inside := _INSIDE.get((where, number)):
                    self.through(place, place + size, inside)
                    payload = size  # counted there
                elif (where, number) in _PAYLOAD:
                    payload = size
                place += size
            elif kind == _VARINT:
                _, place = self._number(place)
            elif kind in _SIZES:
                place += _SIZES[kind]
            else:
                raise _broken()  # groups, which the protocol has not
            self._fields += 1
            self._beside += place - before - payload
            if self._fields > _MOST_FIELDS or self._beside > MOST_BESIDE:
                raise RequestError(
                    f"the message has more than {_MOST_FIELDS} fields, or {MOST_BESIDE} bytes beside its tensors: "
                    "send tensors of whole numbers as raw_input_contents",
                    code="body_too_large",
                )

    def _number(self, place: int) -> tuple[int, int]:
        """A number of variable length, and the place behind it."""
        found = shift = 0
        for _ in range(10):
            byte = self._raw[place]
            place += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found, place
            shift += 7
        raise _broken()


def _broken() -> RequestError:
    return RequestError("the message is no inference.ModelInferRequest", code="bad_request")
